//! JSON as it was written: members and elements are cut out of a text, not read and written anew, so that white space,
//! escapes, the spelling of numbers and the order of what is inside them stay.

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The members of an object in their order, each with the text of its value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members(Vec<(String, String)>);

impl Members {
    /// Cuts an object into its members.
    ///
    /// # Errors
    /// If the text is something else than one JSON object, or a name stands in it twice.
    pub fn of(text: &str) -> Result<Members, String> {
        let mut cutter = Cutter { text, rest: text };
        let mut members = Members::default();
        cutter.expect('{')?;
        if !cutter.takes('}') {
            loop {
                let (name, _) = cutter.value::<String>()?;
                cutter.expect(':')?;
                let (_, value) = cutter.value::<IgnoredAny>()?;
                if members.get(&name).is_some() {
                    return Err(format!("the member `{name}` stands in it twice"));
                }
                members.0.push((name, value.to_owned()));
                if !cutter.takes(',') {
                    break;
                }
            }
            cutter.expect('}')?;
        }
        cutter.end().map(|()| members)
    }

    /// The text of a member's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, text)| text.as_str())
    }

    /// Appends a member.
    pub fn push(&mut self, name: &str, value: &(impl Serialize + ?Sized)) {
        self.push_text(name, json(value));
    }

    /// Appends a member whose value is already text.
    pub fn push_text(&mut self, name: &str, text: String) {
        self.0.push((name.to_owned(), text));
    }

    /// Names and texts, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The object, without white space between its members.
    pub fn to_text(&self) -> String {
        let members = self.0.iter().map(|(name, text)| format!("{}:{text}", json(name)));
        format!("{{{}}}", members.collect::<Vec<_>>().join(","))
    }
}

/// Cuts an array into the texts of its elements.
///
/// # Errors
/// If the text is something else than one JSON array.
pub fn elements(text: &str) -> Result<Vec<String>, String> {
    let mut cutter = Cutter { text, rest: text };
    let mut found = Vec::new();
    cutter.expect('[')?;
    if !cutter.takes(']') {
        loop {
            found.push(cutter.value::<IgnoredAny>()?.1.to_owned());
            if !cutter.takes(',') {
                break;
            }
        }
        cutter.expect(']')?;
    }
    cutter.end().map(|()| found)
}

/// A value as canonical JSON: no white space, maps as they are sorted.
pub fn json(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("OCI documents have only string keys and whole numbers")
}

struct Cutter<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Cutter<'a> {
    fn at(&self) -> usize {
        self.text.len() - self.rest.len()
    }

    fn takes(&mut self, sign: char) -> bool {
        let rest = self.rest.trim_start_matches(SPACE).strip_prefix(sign);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn expect(&mut self, sign: char) -> Result<(), String> {
        match self.takes(sign) {
            true => Ok(()),
            false => Err(format!("a `{sign}` is missing at byte {}", self.at())),
        }
    }

    /// The next value, and its text.
    fn value<T: DeserializeOwned>(&mut self) -> Result<(T, &'a str), String> {
        let rest = self.rest.trim_start_matches(SPACE);
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<T>();
        match values.next() {
            Some(Ok(value)) => {
                let (text, after) = rest.split_at(values.byte_offset());
                self.rest = after;
                Ok((value, text))
            }
            Some(Err(error)) => Err(format!("behind byte {}: {error}", self.at())),
            None => Err(format!("a value is missing at byte {}", self.at())),
        }
    }

    fn end(&self) -> Result<(), String> {
        match self.rest.trim_start_matches(SPACE) {
            "" => Ok(()),
            _ => Err(format!("something follows its end at byte {}", self.at())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_and_not_changed() {
        let text =
            " {\"b\" : 1e2 ,\"\\u0061\": \"\\u00e9\\/\" , \"n\":-0.0,\"o\":{ \"z\":1,\r\n\"a\" :[ ]},\"\":null }\n";
        let members = Members::of(text).expect("cuts");
        let found: Vec<_> = members.iter().collect();
        let expected =
            [("b", "1e2"), ("a", "\"\\u00e9\\/\""), ("n", "-0.0"), ("o", "{ \"z\":1,\r\n\"a\" :[ ]}"), ("", "null")];
        assert_eq!(found, expected);
        let again = r#"{"b":1e2,"a":"\u00e9\/","n":-0.0,"o":"#;
        assert!(members.to_text().starts_with(again), "{}", members.to_text());
        assert_eq!(Members::of(&members.to_text()), Ok(members));
        assert_eq!(
            elements(" [1, [2 ,3],\"a]\"\t, true] "),
            Ok(["1", "[2 ,3]", "\"a]\"", "true"].map(Into::into).into())
        );
        assert_eq!((elements("[]"), Members::of("{ }")), (Ok(Vec::new()), Ok(Members::default())));
    }

    #[test]
    fn what_is_something_else_is_refused() {
        for (text, said) in [
            ("", "`{` is missing"),
            ("[]", "`{` is missing"),
            ("{\"a\":1", "`}` is missing"),
            ("{\"a\":1,}", "byte 7"),
            ("{\"a\" 1}", "`:` is missing"),
            ("{\"a\":}", "byte 5"),
            ("{\"a\":1}{}", "follows its end at byte 7"),
            ("{\"a\":1,\"\\u0061\":2}", "`a` stands in it twice"),
            ("{a:1}", "byte 1"),
        ] {
            let error = Members::of(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(elements("[1").is_err() && elements("[1,]").is_err() && elements("{}").is_err());
    }
}
