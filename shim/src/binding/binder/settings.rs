//! The settings beside the role, each from the first place that has it: the pod, its ServiceAccount, the ConfigMap, the
//! operator.

use rolecall_contract::{SessionDuration, annotation};

use super::{
    super::{Lifetime, MAX_LIFETIME, MIN_LIFETIME, Method},
    Binder,
};
use crate::{
    annotations::{Setting, Written},
    config_map::Entry,
    session_name::SessionName,
    wording::quoted,
};

impl<'a> Binder<'a> {
    pub(super) fn irsa(&mut self) -> Method {
        let written = self.pod.annotation(annotation::SESSION_NAME);
        let written = written.or_else(|| self.on_service_account(annotation::SESSION_NAME)).map(str::trim);
        let Some(text) = written.filter(|text| !text.is_empty()) else {
            return Method::Irsa { session_name: self.policy.session_name.clone() };
        };
        let session_name = text.parse::<SessionName>();
        if let Err(error) = &session_name {
            self.warnings.push(format!(
                "{} is {} and does not count: {error}",
                annotation::SESSION_NAME,
                quoted(text)
            ));
        }
        Method::Irsa { session_name: session_name.ok().or_else(|| self.policy.session_name.clone()) }
    }

    pub(super) fn is_relative(&mut self) -> bool {
        let written = self.pod.annotation(annotation::RELATIVE_URI);
        let Some(text) = written.or_else(|| self.on_service_account(annotation::RELATIVE_URI)) else {
            return false;
        };
        parse_bool(text.trim()).unwrap_or_else(|| {
            self.warnings.push(format!(
                "{} is {} and does not count; use true or false",
                annotation::RELATIVE_URI,
                quoted(text)
            ));
            false
        })
    }

    pub(super) fn audience(&self, entry: Option<&Entry>) -> String {
        let on_service_account = self.find_on_service_account(Setting::Audience).map(|written| written.value);
        let in_config_map = || entry.and_then(|entry| entry.audience.as_deref());
        on_service_account.or_else(in_config_map).unwrap_or(&self.policy.audience).to_owned()
    }

    pub(super) fn regional_sts(&mut self, entry: Option<&Entry>) -> Option<bool> {
        let written = self.find_on_service_account(Setting::StsRegionalEndpoints);
        let asked = written.and_then(|written| {
            let value = parse_bool(written.value);
            if value.is_none() {
                self.warnings.push(format!(
                    "{} is {} and does not count; use true or false",
                    written.key,
                    quoted(written.value)
                ));
            }
            value
        });
        asked.or_else(|| entry.and_then(|entry| entry.use_regional_sts))
    }

    pub(super) fn lifetime(&mut self, entry: Option<&Entry>) -> Lifetime {
        let written = [
            self.find_on_pod(Setting::TokenExpiration).map(|written| ("the pod", written)),
            self.find_on_service_account(Setting::TokenExpiration)
                .map(|written| ("the ServiceAccount", written)),
        ];
        for (place, written) in written.into_iter().flatten() {
            let shown = format!("{} of {place} is {}", written.key, quoted(written.value));
            match Lifetime::asked(written.value) {
                None => self.warnings.push(format!("{shown} and does not count; use a number of seconds")),
                Some((lifetime, is_corrected)) => {
                    self.warn_of_correction(is_corrected, &shown, lifetime);
                    return lifetime;
                }
            }
        }
        if let Some((entry, seconds)) = entry.and_then(|entry| Some((entry, entry.token_expiration?))) {
            let (lifetime, is_corrected) = Lifetime::asked_seconds(seconds);
            let shown = format!("TokenExpiration of {} in the ConfigMap is {seconds}", quoted(&entry.key));
            self.warn_of_correction(is_corrected, &shown, lifetime);
            return lifetime;
        }
        Lifetime::of_policy(self.policy.token_expiration)
    }

    fn warn_of_correction(&mut self, is_corrected: bool, shown: &str, lifetime: Lifetime) {
        if is_corrected {
            self.warnings.push(format!(
                "{shown}, and {MIN_LIFETIME} to {MAX_LIFETIME} seconds are possible; it is taken as {}",
                lifetime.seconds
            ));
        }
    }

    /// The ServiceAccount's; the pod's own stays where it is, and the daemon reads it there.
    pub(super) fn session_duration(&mut self) -> Option<SessionDuration> {
        let on_pod = self.pod.annotation(annotation::SESSION_DURATION);
        let text = on_pod.or_else(|| self.on_service_account(annotation::SESSION_DURATION))?.trim();
        let duration = text.parse().ok().and_then(|seconds| SessionDuration::from_seconds(seconds).ok());
        if duration.is_none() {
            self.warnings.push(format!(
                "{} is {} and does not count; use {} to {} seconds",
                annotation::SESSION_DURATION,
                quoted(text),
                SessionDuration::MIN.as_seconds(),
                SessionDuration::MAX.as_seconds()
            ));
        }
        duration.filter(|_| on_pod.is_none())
    }

    pub(super) fn find_on_pod(&self, setting: Setting) -> Option<Written<'a>> {
        let pod = self.pod;
        setting.find(|key| pod.annotation(key), self.policy.compatibility_prefix.as_deref())
    }

    pub(super) fn find_on_service_account(&self, setting: Setting) -> Option<Written<'a>> {
        let facts = self.sources.service_account?;
        let get = |key: &str| facts.annotations.get(key).map(String::as_str);
        setting.find(get, self.policy.compatibility_prefix.as_deref())
    }

    pub(super) fn on_service_account(&self, key: &str) -> Option<&'a str> {
        let facts = self.sources.service_account?;
        facts.annotations.get(key).map(|value| value.trim()).filter(|value| !value.is_empty())
    }
}

/// The words that the EKS webhook takes (Go's `strconv.ParseBool`).
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
