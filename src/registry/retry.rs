//! When to try again, and how long to wait before.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::StatusCode;

use super::config::Patience;

/// Whether a status says that the same request may succeed later.
pub fn is_temporary(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// Seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// What `Retry-After` asks for: seconds, or a date (RFC 9110, section 10.2.3).
pub fn retry_after(text: &str, now: i64) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are more seconds than anybody waits.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let seconds = http_date(text)?;
    Some(Duration::from_secs(u64::try_from(seconds - now).unwrap_or(0)))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as seconds since 1970.
fn http_date(text: &str) -> Option<i64> {
    let (_, rest) = text.split_once(", ")?;
    let mut fields = rest.split_ascii_whitespace();
    let day: i64 = fields.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let name = fields.next()?;
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = 1 + months.iter().position(|month| *month == name)? as i64;
    let year: i64 = fields.next()?.parse().ok().filter(|year| (1970..10_000).contains(year))?;
    let mut clock =
        fields.next()?.split(':').map(|part| part.parse::<i64>().ok().filter(|part| (0..=60).contains(part)));
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    if fields.next() != Some("GMT") || clock.next().is_some() {
        return None;
    }
    // Days since 1970 of a civil date: years begin in March, so that the odd day of a leap year is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * month + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

/// The pause after the n-th failure in a row: what the registry asks for, else growing, each time another part of it at
/// random, so that many clients do not come back at the same moment.
pub fn pause(patience: &Patience, failures: u32, after: Option<Duration>) -> Duration {
    if let Some(asked) = after {
        // A little more than asked, and not all at once.
        return asked + patience.pause.mul_f64(random());
    }
    let full = patience.pause.saturating_mul(1 << failures.clamp(1, 10)).min(patience.longest_pause);
    full.mul_f64(0.5 + random() / 2.0)
}

/// Between 0 and 1; good enough to spread clients, for nothing else.
pub fn random() -> f64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let seed = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (seed >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = 784_111_777;
        for (text, expected) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("99999999999999999999999", Some(u64::from(u32::MAX))),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Mon, 29 Feb 2016 00:00:00 GMT", Some(1_456_704_000 - 784_111_777)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(text, now), expected.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn pauses_grow_up_to_a_limit_and_obey_the_registry() {
        let patience = Patience::default();
        for failures in 1..40 {
            let pause = pause(&patience, failures, None);
            let full = Duration::from_millis(250 * (1 << failures.min(10))).min(patience.longest_pause);
            assert!(pause >= full / 2 && pause <= full, "{failures}: {pause:?}");
        }
        let asked = Duration::from_secs(7);
        assert!(pause(&patience, 3, Some(asked)) >= asked);
    }
}
