//! Text that is never shown.

use std::fmt;

/// A password or token. Neither `Debug` nor an error can print it; only [`Secret::reveal`] gives it away.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text, for the request that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How to speak to a registry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Credential {
    /// As nobody.
    #[default]
    Anonymous,
    /// With user and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// With an OAuth2 refresh token, which the token server turns into access tokens.
    IdentityToken {
        /// The user, where one is known.
        user: String,
        /// The refresh token.
        token: Secret,
    },
    /// With a finished bearer token.
    RegistryToken(Secret),
}

impl Credential {
    /// What it is, without secrets.
    pub fn shown(&self) -> String {
        match self {
            Credential::Anonymous => "anonymous".into(),
            Credential::Password { user, .. } => format!("user `{user}` with a password"),
            Credential::IdentityToken { user, .. } if user.is_empty() => "an identity token".into(),
            Credential::IdentityToken { user, .. } => format!("an identity token of `{user}`"),
            Credential::RegistryToken(_) => "a registry token".into(),
        }
    }

    /// The same as the `oci-distribution` crate's type; it knows no identity tokens.
    pub fn to_oci(&self) -> oci_distribution::secrets::RegistryAuth {
        use oci_distribution::secrets::RegistryAuth;
        match self {
            Credential::Anonymous | Credential::IdentityToken { .. } => RegistryAuth::Anonymous,
            Credential::Password { user, password } => RegistryAuth::Basic(user.clone(), password.reveal().into()),
            Credential::RegistryToken(token) => RegistryAuth::Bearer(token.reveal().into()),
        }
    }
}
