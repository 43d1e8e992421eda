//! When a CronJob runs.

/// The least and the largest number of each field, and the names that may stand for numbers from the least on.
const FIELDS: [(u8, u8, &[&str]); 5] = [
    (0, 59, &[]),
    (0, 23, &[]),
    (1, 31, &[]),
    (1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    (0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// The schedules that have a name.
const NAMED: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// Whether Kubernetes takes a schedule: a named one, or five fields (minute, hour, day of the month, month, day of the week)
/// of lists of `*`, numbers, ranges and steps.
pub(super) fn is_schedule(text: &str) -> bool {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let fits = |(field, (least, most, names)): (&&str, &(u8, u8, &[&str]))| {
        field.split(',').all(|part| is_part(part, *least, *most, names))
    };
    NAMED.contains(&text) || (fields.len() == FIELDS.len() && fields.iter().zip(&FIELDS).all(fits))
}

/// `*`, `N`, `N-M`, each perhaps with `/STEP`.
fn is_part(part: &str, least: u8, most: u8, names: &[&str]) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u8>().ok()).flatten();
    let number = |text: &str| {
        let named =
            names.iter().zip(least..).find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, number)| number);
        named.or_else(|| digits(text)).filter(|number| (least..=most).contains(number))
    };
    let (range, step) = part.split_once('/').unwrap_or((part, "1"));
    let range_fits = match range.split_once('-') {
        _ if matches!(range, "*" | "?") => true,
        Some((from, to)) => number(from).zip(number(to)).is_some_and(|(from, to)| from <= to),
        None => number(range).is_some(),
    };
    range_fits && digits(step).is_some_and(|step| step > 0)
}

#[cfg(test)]
mod tests {
    use super::is_schedule;

    #[test]
    fn schedules_are_told_from_what_is_none() {
        for good in ["15 2 * * *", "*/5 0-23/2 1,15 jan-Mar sun", "0 0 31 12 6", "5/15 ? * * ?", "@daily"] {
            assert!(is_schedule(good), "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * 32 * *",
            "* * * 13 *",
            "* * * 0 *",
            "* * * * 7",
            "5-1 * * * *",
            "*/0 * * * *",
            "*/ * * * *",
            "1, * * * *",
            "-1 * * * *",
            "+1 * * * *",
            "1.5 * * * *",
            "* * * * moon",
            "jan * * * *",
            "@never",
            "TZ=UTC 0 0 * * *",
        ] {
            assert!(!is_schedule(bad), "{bad}");
        }
    }
}
