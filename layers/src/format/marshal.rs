//! Marshalled code in one canonical form.
//!
//! `marshal.dumps` of CPython writes other bytes for equal code, depending on what the process did before: whether a
//! string is interned and how often an object is referred to both show. Here the stream is read as a tree of values and
//! written again by rules that look at nothing but the values:
//!
//! - a string is interned exactly where it could be a name (ASCII letters, digits and `_`);
//! - equal strings, bytes, numbers and tuples are written once and referred to after that;
//! - the members of a frozen set are sorted by their bytes.
//!
//! The format is that of CPython 3.11 to 3.14 (`Python/marshal.c`, versions 4 and 5); it has no other specification.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Why a stream is not marshalled code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the interpreter wrote byte-code that is not understood: {0}")]
pub struct MarshalError(&'static str);

const FLAG_REF: u8 = 0x80;

/// What people do not write: functions in functions in functions.
pub const TOO_DEEP: MarshalError = MarshalError("it is nested too deeply");

/// Nesting that is followed, as it is written or by way of references: the parser allows 200 brackets and 100 indentations, each of the
/// latter two levels here.
const DEPTH: usize = 600;

/// Bytes that the members of all sets may come to, each by itself.
const SORTED: usize = 64 << 20;

/// A value whose parts are other values of the arena.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Value<'a> {
    /// A type and bytes that follow it: constants and numbers.
    Plain(u8, &'a [u8]),
    /// Text, as it is encoded (UTF-8 with surrogates).
    Text(&'a [u8]),
    /// A byte string.
    Bytes(&'a [u8]),
    /// A tuple.
    Tuple(Vec<usize>),
    /// A frozen set, sorted.
    Set(Vec<usize>),
    /// A slice (3.14).
    Slice([usize; 3]),
    /// A code object: five numbers, eight values, a number, two values. No two count as equal.
    Code { numbers: &'a [u8], before: [usize; 8], line: &'a [u8], after: [usize; 2] },
}

#[derive(Default)]
struct Reader<'a> {
    left: &'a [u8],
    /// Values by their order of `FLAG_REF`; `None` while they are read.
    marked: Vec<Option<usize>>,
    values: Vec<Value<'a>>,
    /// How deeply each value is nested in itself: 1 where it has no parts.
    depths: Vec<usize>,
    known: HashMap<Value<'a>, usize>,
    written: Written,
    /// Bytes of members that were sorted so far.
    sorted: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], MarshalError> {
        let (taken, left) = self.left.split_at_checked(count).ok_or(MarshalError("it ends early"))?;
        self.left = left;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, MarshalError> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<[u8; 4], MarshalError> {
        let mut four = [0; 4];
        four.copy_from_slice(self.take(4)?);
        Ok(four)
    }

    fn length(&mut self) -> Result<usize, MarshalError> {
        let length = u32::from_le_bytes(self.number()?);
        if length > i32::MAX as u32 { Err(MarshalError("a negative length")) } else { Ok(length as usize) }
    }

    fn place(&mut self, value: Value<'a>) -> Result<usize, MarshalError> {
        let depth = 1 + value.parts().map(|part| self.depths[part]).max().unwrap_or(0);
        if depth > DEPTH {
            return Err(TOO_DEEP);
        }
        let next = self.values.len();
        if !matches!(value, Value::Code { .. }) {
            match self.known.entry(value.clone()) {
                Entry::Occupied(known) => return Ok(*known.get()),
                Entry::Vacant(new) => new.insert(next),
            };
        }
        self.values.push(value);
        self.depths.push(depth);
        Ok(next)
    }

    fn values(&mut self, count: usize, depth: usize) -> Result<Vec<usize>, MarshalError> {
        // Each value takes at least a byte: a length that lies allocates nothing.
        if count > self.left.len() {
            return Err(MarshalError("it ends early"));
        }
        (0..count).map(|_| self.value(depth)).collect()
    }

    fn array<const N: usize>(&mut self, depth: usize) -> Result<[usize; N], MarshalError> {
        let mut array = [0; N];
        for slot in &mut array {
            *slot = self.value(depth)?;
        }
        Ok(array)
    }

    fn value(&mut self, depth: usize) -> Result<usize, MarshalError> {
        if depth == 0 {
            return Err(TOO_DEEP);
        }
        let depth = depth - 1;
        let head = self.byte()?;
        let kind = head & !FLAG_REF;
        if kind == b'r' {
            let at = self.length()?;
            return self.marked.get(at).copied().flatten().ok_or(MarshalError("a reference to nothing"));
        }
        // A value's number is taken before its parts are read.
        let slot = (head & FLAG_REF != 0).then(|| {
            self.marked.push(None);
            self.marked.len() - 1
        });
        let value = match kind {
            b'N' | b'T' | b'F' | b'.' | b'S' => Value::Plain(kind, &[]),
            b'i' => Value::Plain(kind, self.take(4)?),
            b'g' => Value::Plain(kind, self.take(8)?),
            b'y' => Value::Plain(kind, self.take(16)?),
            b'l' => {
                let whole = self.left;
                let digits = i32::from_le_bytes(self.number()?).unsigned_abs() as usize;
                let length = self.take(digits.checked_mul(2).ok_or(MarshalError("a length"))?)?.len();
                Value::Plain(kind, &whole[..4 + length])
            }
            b'a' | b'A' | b'z' | b'Z' | b't' | b'u' => {
                let length = if matches!(kind, b'z' | b'Z') { usize::from(self.byte()?) } else { self.length()? };
                Value::Text(self.take(length)?)
            }
            b's' => {
                let length = self.length()?;
                Value::Bytes(self.take(length)?)
            }
            b')' => {
                let count = usize::from(self.byte()?);
                Value::Tuple(self.values(count, depth)?)
            }
            b'(' => {
                let count = self.length()?;
                Value::Tuple(self.values(count, depth)?)
            }
            b'>' => {
                let count = self.length()?;
                let members = self.values(count, depth)?;
                let mut sorted = Vec::with_capacity(members.len());
                for member in members {
                    let bytes = self.written.by_itself(&self.values, member);
                    self.sorted += bytes.len();
                    if self.sorted > SORTED {
                        return Err(MarshalError("its sets are too large"));
                    }
                    sorted.push((bytes, member));
                }
                sorted.sort();
                Value::Set(sorted.into_iter().map(|(_, member)| member).collect())
            }
            b':' => Value::Slice(self.array(depth)?),
            b'c' => {
                let numbers = self.take(20)?;
                let before = self.array(depth)?;
                let line = self.take(4)?;
                Value::Code { numbers, before, line, after: self.array(depth)? }
            }
            _ => return Err(MarshalError("a type that code has no use for")),
        };
        let at = self.place(value)?;
        if let Some(slot) = slot {
            self.marked[slot] = Some(at);
        }
        Ok(at)
    }
}

impl Value<'_> {
    /// The values that this one is made of.
    fn parts(&self) -> impl Iterator<Item = usize> {
        let (first, second): (&[usize], &[usize]) = match self {
            Value::Tuple(parts) | Value::Set(parts) => (parts, &[]),
            Value::Slice(parts) => (parts, &[]),
            Value::Code { before, after, .. } => (before, after),
            Value::Plain(..) | Value::Text(_) | Value::Bytes(_) => (&[], &[]),
        };
        first.iter().chain(second).copied()
    }
}

/// What is known of values while one is written, by their places; nothing between two of them.
#[derive(Default)]
struct Written {
    uses: Vec<u32>,
    /// The numbers of those that are referred to.
    numbers: Vec<Option<u32>>,
    /// Those that are used.
    used: Vec<usize>,
}

impl Written {
    /// One value by itself, as bytes. It takes as long as what is in it, however many others there are.
    fn by_itself(&mut self, values: &[Value<'_>], top: usize) -> Vec<u8> {
        self.uses.resize(values.len(), 0);
        self.numbers.resize(values.len(), None);
        self.count(values, top);
        let mut writer = Writer { values, known: self, next: 0, out: Vec::new() };
        writer.write(top);
        let out = writer.out;
        for at in self.used.drain(..) {
            (self.uses[at], self.numbers[at]) = (0, None);
        }
        out
    }

    /// Counts how often each value is written; what is in a value that is written once counts once.
    fn count(&mut self, values: &[Value<'_>], at: usize) {
        self.uses[at] += 1;
        if self.uses[at] == 1 {
            self.used.push(at);
        } else if is_shared(&values[at]) {
            return;
        }
        values[at].parts().for_each(|part| self.count(values, part));
    }
}

/// Whether a second use is written as a reference: where that is shorter.
fn is_shared(value: &Value<'_>) -> bool {
    match value {
        Value::Plain(_, bytes) => bytes.len() > 4,
        Value::Tuple(parts) => !parts.is_empty(),
        _ => true,
    }
}

struct Writer<'a, 'v> {
    values: &'a [Value<'v>],
    known: &'a mut Written,
    next: u32,
    out: Vec<u8>,
}

impl Writer<'_, '_> {
    fn write(&mut self, at: usize) {
        let value = &self.values[at];
        let mut flag = 0;
        if self.known.uses[at] > 1 && is_shared(value) {
            if let Some(number) = self.known.numbers[at] {
                self.out.push(b'r');
                self.out.extend(number.to_le_bytes());
                return;
            }
            self.known.numbers[at] = Some(self.next);
            self.next += 1;
            flag = FLAG_REF;
        }
        match value {
            Value::Plain(kind, bytes) => {
                self.out.push(kind | flag);
                self.out.extend_from_slice(bytes);
            }
            Value::Text(bytes) => {
                let ascii = bytes.is_ascii();
                let is_name =
                    !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
                let kind = match (ascii, u8::try_from(bytes.len())) {
                    (true, Ok(_)) => {
                        if is_name {
                            b'Z'
                        } else {
                            b'z'
                        }
                    }
                    (true, Err(_)) => {
                        if is_name {
                            b'A'
                        } else {
                            b'a'
                        }
                    }
                    (false, _) => b'u',
                };
                self.out.push(kind | flag);
                match u8::try_from(bytes.len()) {
                    Ok(length) if ascii => self.out.push(length),
                    _ => self.length(bytes.len()),
                }
                self.out.extend_from_slice(bytes);
            }
            Value::Bytes(bytes) => {
                self.out.push(b's' | flag);
                self.length(bytes.len());
                self.out.extend_from_slice(bytes);
            }
            Value::Tuple(parts) => {
                match u8::try_from(parts.len()) {
                    Ok(length) => self.out.extend([b')' | flag, length]),
                    Err(_) => {
                        self.out.push(b'(' | flag);
                        self.length(parts.len());
                    }
                }
                parts.iter().for_each(|part| self.write(*part));
            }
            Value::Set(parts) => {
                self.out.push(b'>' | flag);
                self.length(parts.len());
                parts.iter().for_each(|part| self.write(*part));
            }
            Value::Slice(parts) => {
                self.out.push(b':' | flag);
                parts.iter().for_each(|part| self.write(*part));
            }
            Value::Code { numbers, before, line, after, .. } => {
                self.out.push(b'c' | flag);
                self.out.extend_from_slice(numbers);
                before.iter().for_each(|part| self.write(*part));
                self.out.extend_from_slice(line);
                after.iter().for_each(|part| self.write(*part));
            }
        }
    }

    fn length(&mut self, length: usize) {
        // It came from four bytes.
        self.out.extend((length as u32).to_le_bytes());
    }
}

/// Writes marshalled code again, in the form that depends on nothing but the code.
pub fn canonical(stream: &[u8]) -> Result<Vec<u8>, MarshalError> {
    let mut reader = Reader { left: stream, ..Reader::default() };
    let top = reader.value(DEPTH)?;
    if !reader.left.is_empty() {
        return Err(MarshalError("something follows it"));
    }
    if !matches!(reader.values[top], Value::Code { .. }) {
        return Err(MarshalError("it is no code"));
    }
    Ok(reader.written.by_itself(&reader.values, top))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A code object whose constants are `constants` and whose name is `name`, both marshalled.
    fn code(constants: &[u8], name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![b'c' | FLAG_REF];
        bytes.extend([0; 20]);
        bytes.extend(b"s\0\0\0\0");
        bytes.extend(constants);
        bytes.extend(b")\0)\0s\0\0\0\0z\x01f");
        bytes.extend(name);
        bytes.extend(name);
        bytes.extend([1, 0, 0, 0]);
        bytes.extend(b"s\0\0\0\0s\0\0\0\0");
        bytes
    }

    #[test]
    fn interning_references_and_the_order_of_sets_do_not_show() {
        let plain = code(b")\x02z\x01az\x01a", b"z\x01n");
        // The same with interned strings and a reference (the code is number 0, "a" number 1).
        let referring = code(b")\x02\xda\x01ar\x01\0\0\0", b"Z\x01n");
        assert_ne!(plain, referring);
        assert_eq!(canonical(&plain), canonical(&referring));
        let one = code(b")\x01>\x02\0\0\0z\x01az\x01b", b"z\x01n");
        let two = code(b")\x01>\x02\0\0\0z\x01bz\x01a", b"z\x01n");
        assert_eq!(canonical(&one), canonical(&two));
        let canonical_once = canonical(&plain).expect("code");
        assert_eq!(canonical(&canonical_once).expect("code"), canonical_once);
    }

    /// A tuple with a value in a tuple in a tuple and so on, each in turn by a reference to the last, and what follows them.
    fn chained(levels: u32, end: &[u8]) -> Vec<u8> {
        // The code itself is number 0.
        let mut constants = vec![b'('];
        constants.extend((levels + 1).to_le_bytes());
        constants.extend([b')' | FLAG_REF, 1, b'N']);
        for last in 1..levels {
            constants.extend([b')' | FLAG_REF, 1, b'r']);
            constants.extend(last.to_le_bytes());
        }
        constants.extend(end);
        code(&constants, b"z\x01n")
    }

    #[test]
    fn nesting_by_way_of_references_is_nesting() {
        let set = |levels: u32| [&b">\x01\0\0\0r"[..], &levels.to_le_bytes()].concat();
        for end in [&b"N"[..], &set(500)] {
            let bytes = canonical(&chained(500, end)).expect("as deep as people write");
            assert_eq!(canonical(&bytes).expect("code"), bytes);
        }
        for end in [&b"N"[..], &set(1000)] {
            assert_eq!(canonical(&chained(1000, end)), Err(TOO_DEEP));
        }
        assert_eq!(canonical(&chained(200_000, &set(200_000))), Err(TOO_DEEP));
    }

    #[test]
    fn what_members_of_sets_come_to_is_bounded() {
        let large = [&b"\0\0\x10\0"[..], &vec![b'x'; 1 << 20]].concat();
        let set = |members: u8| {
            let mut constants = [&[b')', 2, b's' | FLAG_REF][..], &large, &[b'>', members, 0, 0, 0]].concat();
            for member in 0..members {
                constants.extend([b')', 2, b'i', member, 0, 0, 0, b'r', 1, 0, 0, 0]);
            }
            canonical(&code(&constants, b"z\x01n"))
        };
        assert!(set(60).is_ok());
        assert_eq!(set(70), Err(MarshalError("its sets are too large")));
    }

    #[test]
    fn code_that_is_there_twice_is_referred_to() {
        let constants = [&b")\x02"[..], &code(b")\0", b"z\x01n"), b"r\x01\0\0\0"].concat();
        let bytes = canonical(&code(&constants, b"z\x01n")).expect("code");
        assert_eq!(canonical(&bytes).expect("code"), bytes);
    }

    #[test]
    fn every_prefix_and_every_changed_byte_is_code_or_an_error_and_never_a_panic() {
        let whole = code(b")\x04>\x02\0\0\0z\x01az\x01bi\x01\0\0\0l\x02\0\0\0\x01\0\x01\0g\0\0\0\0\0\0\0\0", b"z\x01n");
        canonical(&whole).expect("code");
        for end in 0..whole.len() {
            assert!(canonical(&whole[..end]).is_err(), "{end} bytes of {}", whole.len());
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff, b'r', b'(', b'c'] {
                let mut changed = whole.clone();
                changed[at] = byte;
                if let Ok(bytes) = canonical(&changed) {
                    assert_eq!(canonical(&bytes).expect("code"), bytes);
                }
            }
        }
    }
}
