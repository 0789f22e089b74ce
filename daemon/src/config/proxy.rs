//! The proxies of the environment.

use std::fmt;

use url::Url;

use crate::args::Environment;
use rolecall_process::setting::Mistake;

/// Which requests to STS go through a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// For https endpoints.
    pub https: Option<ProxyUrl>,
    /// For http endpoints.
    pub http: Option<ProxyUrl>,
    /// Hosts that are reached directly, as `NO_PROXY` lists them.
    pub no_proxy: Option<String>,
}

/// The URL of a proxy. Its user name and password are neither shown nor logged.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyConfig {
    pub(super) fn parse(environment: &Environment) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut parse = |flag, value: &Option<String>| {
            let parsed = ProxyUrl::parse(flag, value.as_deref()?);
            parsed.map_err(|mistake| mistakes.push(mistake)).ok()
        };
        let https = parse("HTTPS_PROXY", &environment.https_proxy);
        let http = parse("HTTP_PROXY", &environment.http_proxy);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self { https, http, no_proxy: environment.no_proxy.clone() })
    }
}

impl ProxyUrl {
    /// The whole URL, to be given to the HTTP client alone.
    #[must_use]
    pub fn expose(&self) -> &Url {
        &self.0
    }

    /// Takes `host:port` for a plain http proxy, as curl does.
    fn parse(flag: &'static str, text: &str) -> Result<Self, Mistake> {
        let text = text.trim();
        let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        match whole.parse::<Url>() {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Self(url)),
            Ok(_) | Err(_) => Err(Mistake {
                flag,
                // Only what stands after the @ is repeated: before it is the password.
                given: format!("{:?}", text.rsplit('@').next().unwrap_or_default()),
                remedy:
                    "give the URL of an http proxy, such as http://proxy.example:3128, or unset the variable"
                        .to_owned(),
            }),
        }
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.0.scheme())?;
        if !self.0.username().is_empty() || self.0.password().is_some() {
            f.write_str("…@")?;
        }
        f.write_str(self.0.host_str().unwrap_or_default())?;
        match self.0.port() {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
