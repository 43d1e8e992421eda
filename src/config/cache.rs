//! How large the cache may become, and how layers are compressed.

use std::time::Duration;

use layers::encode::Compression;

use super::{Config, ConfigError, Found, ini};
use crate::remote::{PublicKey, RemoteSpec, S3Settings, SigningKey};

/// What the cache is kept to; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes on disk.
    pub max_size: Option<u64>,
    /// Seconds since the last use.
    pub max_age: Option<u64>,
    /// Bytes that stay free in its file system.
    pub min_free: Option<u64>,
}

/// The ceiling where nobody sets one, bytes.
pub const DEFAULT_MAX_SIZE: u64 = 20_000_000_000;

/// How long a cache elsewhere may be silent where nobody says it: longer than a hiccup, and no more than a build bears.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(30);

/// A day: whatever is longer has no end.
const LONGEST_PATIENCE: u64 = 86_400;

impl Config {
    /// How layers are compressed: `flag`, IMGBUILD_COMPRESSION, `compression`, else gzip.
    ///
    /// # Errors
    /// If it is no compression.
    pub fn compression(&self, flag: Option<Compression>) -> Result<Compression, ConfigError> {
        match (flag, self.first("IMGBUILD_COMPRESSION", &["compression"])?) {
            (Some(flag), _) => Ok(flag),
            (None, None) => Ok(Compression::Gzip),
            (None, Some(found)) => found.text.trim().parse().map_err(|why: String| found.wrong(why)),
        }
    }

    /// What the cache is kept to after every build: IMGBUILD_CACHE_MAX_SIZE, `cache.max-size` and so on, else 20 GB.
    ///
    /// # Errors
    /// If a value is no size, no span of time, and not `none`.
    pub fn cache_limits(&self) -> Result<CacheLimits, ConfigError> {
        let read = |variable: &str, key: &str, parse: fn(&str) -> Result<u64, String>| {
            let Some(found) = self.first(variable, &["cache", key])? else { return Ok(None) };
            match found.text.trim() {
                "none" => Ok(Some(None)),
                text => parse(text).map(|number| Some(Some(number))).map_err(|why| found.wrong(why)),
            }
        };
        Ok(CacheLimits {
            max_size: read("IMGBUILD_CACHE_MAX_SIZE", "max-size", parse_size)?.unwrap_or(Some(DEFAULT_MAX_SIZE)),
            max_age: read("IMGBUILD_CACHE_MAX_AGE", "max-age", parse_age)?.flatten(),
            min_free: read("IMGBUILD_CACHE_MIN_FREE", "min-free", parse_size)?.flatten(),
        })
    }

    /// How long a cache elsewhere may be silent before it is passed over: IMGBUILD_CACHE_PATIENCE, `cache.patience`, else half a
    /// minute.
    ///
    /// # Errors
    /// If it is no span of time, or none at all.
    pub fn cache_patience(&self) -> Result<Duration, ConfigError> {
        let Some(found) = self.first("IMGBUILD_CACHE_PATIENCE", &["cache", "patience"])? else {
            return Ok(DEFAULT_PATIENCE);
        };
        match parse_age(found.text.trim()) {
            Ok(0) => Err(found.wrong("nothing can be had in no time")),
            Ok(seconds) => Ok(Duration::from_secs(seconds.min(LONGEST_PATIENCE))),
            Err(why) => Err(found.wrong(why)),
        }
    }

    /// The file with the key that records are signed with before they go to a cache elsewhere: IMGBUILD_CACHE_SIGNING_KEY,
    /// `cache.signing-key`.
    ///
    /// # Errors
    /// If the file cannot be read or holds no key.
    pub fn cache_signing_key(&self) -> Result<Option<SigningKey>, ConfigError> {
        let from_file = || {
            let file = self.file.as_ref()?;
            file.get(&["cache", "signing-key"]).map(|value| file.path(&value.texts[0]))
        };
        let Some(path) = self.environment.path("IMGBUILD_CACHE_SIGNING_KEY").or_else(from_file) else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let wrong = |why| ConfigError::Value { place: format!("`{}`", path.display()), why };
        text.parse().map(Some).map_err(wrong)
    }

    /// The keys whose signatures make records of caches elsewhere believable: IMGBUILD_CACHE_TRUSTED_KEYS,
    /// `cache.trusted-keys`.
    ///
    /// # Errors
    /// If one is no key.
    pub fn cache_trusted_keys(&self) -> Result<Vec<PublicKey>, ConfigError> {
        let found = self.all("IMGBUILD_CACHE_TRUSTED_KEYS", &["cache", "trusted-keys"])?;
        found.iter().map(|found| found.text.parse().map_err(|why: String| found.wrong(why))).collect()
    }

    /// Caches elsewhere whose records are believed without a signature, folders as they are [seen](RemoteSpec::seen_from) from where they are
    /// named: IMGBUILD_CACHE_TRUSTED_STORES, `cache.trusted-stores`.
    ///
    /// # Errors
    /// If one is no cache.
    pub fn cache_trusted_stores(&self) -> Result<Vec<RemoteSpec>, ConfigError> {
        let variable = "IMGBUILD_CACHE_TRUSTED_STORES";
        let found = self.all(variable, &["cache", "trusted-stores"])?;
        let folder = match (self.environment.text(variable)?, &self.file) {
            (None, Some(file)) => file.path(""),
            _ => self.environment.directory().to_owned(),
        };
        let store =
            |found: &Found| Ok(found.text.parse::<RemoteSpec>().map_err(|why| found.wrong(why))?.seen_from(&folder));
        found.iter().map(store).collect()
    }

    /// How an S3 service is reached, by what AWS's own tools read: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL; AWS_REGION,
    /// AWS_DEFAULT_REGION, else `us-east-1`; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, else the profile
    /// AWS_PROFILE (`default`) of AWS_SHARED_CREDENTIALS_FILE (`~/.aws/credentials`).
    ///
    /// # Errors
    /// If a value makes no sense, a key has no secret, or a profile that was asked for is not there.
    pub fn s3(&self) -> Result<S3Settings, ConfigError> {
        let text = |name: &str| Ok::<_, ConfigError>(self.environment.text(name)?.map(str::to_owned));
        let endpoint = match text("AWS_ENDPOINT_URL_S3")? {
            Some(url) => Some((url, "AWS_ENDPOINT_URL_S3")),
            None => text("AWS_ENDPOINT_URL")?.map(|url| (url, "AWS_ENDPOINT_URL")),
        };
        let endpoint = endpoint.map(|(text, name)| Found { text, place: format!("the variable {name}") }.url());
        let region = match text("AWS_REGION")? {
            Some(region) => region,
            None => text("AWS_DEFAULT_REGION")?.unwrap_or_else(|| "us-east-1".into()),
        };
        let credentials = match (text("AWS_ACCESS_KEY_ID")?, text("AWS_SECRET_ACCESS_KEY")?) {
            (Some(key), Some(secret)) => Some((key, secret, text("AWS_SESSION_TOKEN")?)),
            (None, None) => self.s3_profile(text("AWS_PROFILE")?)?,
            (key, _) => {
                let (there, missing) = match key {
                    Some(_) => ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
                    None => ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
                };
                let why = format!("it is of no use without {missing}");
                return Err(ConfigError::Value { place: format!("the variable {there}"), why });
            }
        };
        Ok(S3Settings { endpoint: endpoint.transpose()?, region, credentials })
    }

    fn s3_profile(&self, named: Option<String>) -> Result<Option<(String, String, Option<String>)>, ConfigError> {
        let environment = &self.environment;
        let path = environment.path("AWS_SHARED_CREDENTIALS_FILE");
        let Some(path) = path.or_else(|| environment.home().map(|home| home.join(".aws/credentials"))) else {
            return Ok(None);
        };
        let profile = named.as_deref().unwrap_or("default");
        let sections = std::fs::read_to_string(&path).map(|text| ini::parse(&text)).unwrap_or_default();
        let get = |name: &str| sections.get(profile)?.get(name).filter(|text| !text.is_empty()).cloned();
        match (get("aws-access-key-id"), get("aws-secret-access-key")) {
            (Some(key), Some(secret)) => Ok(Some((key, secret, get("aws-session-token")))),
            _ if named.is_none() => Ok(None),
            _ => Err(ConfigError::Value {
                place: "the variable AWS_PROFILE".into(),
                why: format!("`{}` has no keys for a profile `{profile}`", path.display()),
            }),
        }
    }
}

/// Parses a size: `500MB`, `20 GB`, `4GiB`, `1000000`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let units = [
        ("", 1),
        ("b", 1),
        ("k", 1_000),
        ("kb", 1_000),
        ("m", 1_000_000),
        ("mb", 1_000_000),
        ("g", 1_000_000_000),
        ("gb", 1_000_000_000),
        ("t", 1_000_000_000_000),
        ("tb", 1_000_000_000_000),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
    ];
    measure(text, &units).ok_or_else(|| format!("`{text}` is no size such as `500MB`, `20GB` or `4GiB`"))
}

/// Parses a span of time into seconds: `90s`, `30m`, `12h`, `30d`, `4w`.
pub fn parse_age(text: &str) -> Result<u64, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("w", 604_800)];
    measure(text, &units).ok_or_else(|| format!("`{text}` is no span of time such as `12h`, `30d` or `4w`"))
}

fn measure(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|character: char| character.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_a_span_of_time_that_is_not_nothing() {
        let with = |text: &str| {
            let variables = [("IMGBUILD_CACHE_PATIENCE".into(), text.into()), ("HOME".into(), "/nowhere".into())];
            let environment = crate::config::Environment::new(variables, "/nowhere");
            Config::load(&environment, None).expect("there is no file").cache_patience()
        };
        assert_eq!(with("2m").expect("two minutes"), Duration::from_secs(120));
        for wrong in ["0s", "soon", "30"] {
            let error = with(wrong).expect_err(wrong).to_string();
            assert!(error.contains("IMGBUILD_CACHE_PATIENCE"), "{error}");
        }
    }

    #[test]
    fn sizes_and_ages_are_read_with_their_units_and_nothing_else() {
        for (text, bytes) in
            [("0", 0), ("7", 7), ("500MB", 500_000_000), ("20 GB", 20_000_000_000), ("4GiB", 4 << 30), ("1k", 1000)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("12h", 43_200), ("30d", 2_592_000), ("4w", 2_419_200)] {
            assert_eq!(parse_age(text), Ok(seconds), "{text}");
        }
        for text in ["", "GB", "-1", "1.5GB", "1 PB", "20GBx", "99999999999999999999", "18446744073709551615k", "é"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        for text in ["", "7", "d", "-1d", "1y"] {
            assert!(parse_age(text).is_err(), "{text}");
        }
    }
}
