//! Which controller the commands talk to: `CURFEW_…` variables over a profile, flags over those.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use curfew_client::{Client, Options};
use serde::Deserialize;

use crate::exit::Usage;

/// Where a controller is when nobody says.
const ADDR: &str = "http://127.0.0.1:4690";
/// Used when nobody names another one, and no address.
const DEFAULT: &str = "default";

#[derive(Args, Clone, Default)]
pub struct Remote {
    /// The controller's address, or several of controllers on one database, separated by commas [default: http://127.0.0.1:4690].
    #[arg(long, global = true, env = "CURFEW_ADDR", value_name = "URL")]
    pub addr: Option<String>,
    /// A table of ~/.config/curfew/profiles.toml with addr, token_file, ca_cert, client_cert and client_key.
    #[arg(long, global = true, env = "CURFEW_PROFILE", value_name = "NAME")]
    pub profile: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Profile {
    addr: Option<String>,
    token_file: Option<PathBuf>,
    ca_cert: Option<PathBuf>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
}

impl Remote {
    /// The address that somebody named, if anybody did.
    pub fn named(&self) -> anyhow::Result<Option<String>> {
        let addr = self.addr.clone().filter(|a| !a.is_empty());
        Ok(if addr.is_some() { addr } else { self.profile()?.addr })
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        let profile = self.profile()?;
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let file = |name: &str, other: Option<PathBuf>| var(name).map(PathBuf::from).or(other);
        let token = var("CURFEW_TOKEN");
        let addr = self.addr.clone().filter(|a| !a.is_empty()).or(profile.addr).unwrap_or_else(|| ADDR.to_owned());
        Ok(Client::with(Options {
            addr,
            // A token that is set is meant, whatever file a profile names.
            token_file: if token.is_some() {
                var("CURFEW_TOKEN_FILE").map(PathBuf::from)
            } else {
                file("CURFEW_TOKEN_FILE", profile.token_file)
            },
            token: token.map(Into::into),
            ca_cert: file("CURFEW_CACERT", profile.ca_cert),
            client_cert: file("CURFEW_CLIENT_CERT", profile.client_cert),
            client_key: file("CURFEW_CLIENT_KEY", profile.client_key),
        })?)
    }

    fn profile(&self) -> anyhow::Result<Profile> {
        let asked = self.profile.as_deref().filter(|p| !p.is_empty());
        let name = match (asked, &self.addr) {
            (Some(name), _) => name,
            (None, None) => DEFAULT,
            (None, Some(_)) => return Ok(Profile::default()),
        };
        let path = path();
        let text = match path.as_ref().map(std::fs::read_to_string) {
            Some(Ok(text)) => text,
            _ if asked.is_none() => return Ok(Profile::default()),
            Some(Err(e)) => return Err(Usage(format!("--profile {name}: {e}: {}", path.unwrap_or_default().display())).into()),
            None => return Err(Usage(format!("--profile {name}: there is no home directory to find profiles.toml in")).into()),
        };
        let place = path.unwrap_or_default().display().to_string();
        let mut all: BTreeMap<String, Profile> =
            toml::from_str(&text).with_context(|| Usage(format!("the profiles in {place} cannot be read")))?;
        let names = all.keys().cloned().collect::<Vec<_>>().join(", ");
        match all.remove(name) {
            Some(profile) => Ok(profile),
            None if asked.is_none() => Ok(Profile::default()),
            None => Err(Usage(format!("there is no profile \"{name}\" in {place}; it has {names}")).into()),
        }
    }
}

fn path() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let config = var("XDG_CONFIG_HOME").or_else(|| Some(var("HOME")?.join(".config")))?;
    Some(config.join("curfew/profiles.toml"))
}
