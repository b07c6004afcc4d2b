//! One TOML file, `CURFEW_…` variables over it, flags over those.

use std::path::Path;

use anyhow::Context;
use curfew_core::config::{BadConfig, Config};
use curfew_store::Database;
use toml::{Table, Value};

use crate::args::{ConfigCommand, Serve};
use crate::exit::{Exit, Usage};
use crate::output::line;
use crate::{example, serve};

pub fn run(command: ConfigCommand) -> anyhow::Result<Exit> {
    match command {
        ConfigCommand::Default => line(example::text()?.trim_end()),
        ConfigCommand::Check(args) => {
            let config = load(&args)?;
            // What `serve` finds out before it connects to anything.
            Database::parse(config.database.expose()).map_err(|e| Usage(e.to_string()))?;
            config.gc()?;
            let nomad = serve::nomad(&config, |name| std::env::var(name).ok())?;
            let from = args.config.as_ref().map_or("no file".to_owned(), |p| p.display().to_string());
            line(&format!("the configuration fits ({from}); Nomad at {}", nomad.address()));
        }
    }
    Ok(Exit::Done)
}

/// Variables that start with `CURFEW_` and are not keys of the configuration.
const OTHERS: [&str; 11] = [
    "CURFEW_ADDR",
    "CURFEW_TOKEN",
    "CURFEW_TOKEN_FILE",
    "CURFEW_PROFILE",
    "CURFEW_CACERT",
    "CURFEW_CLIENT_CERT",
    "CURFEW_CLIENT_KEY",
    "CURFEW_CONFIG",
    "CURFEW_LOG",
    "CURFEW_LOG_FORMAT",
    "CURFEW_TEST_NOMAD",
];

pub fn load(args: &Serve) -> anyhow::Result<Config> {
    let table = match &args.config {
        Some(path) => read(path)?,
        None => Table::new(),
    };
    let env: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.to_string_lossy().into_owned())))
        .filter(|(k, _)| k.starts_with("CURFEW_") && !OTHERS.contains(&k.as_str()))
        .collect();
    let mut config = merge(table, args.config.as_deref(), &env)?;
    if let Some(database) = &args.database {
        config.database = database.as_str().into();
    }
    if let Some(listen) = &args.listen {
        config.listen.clone_from(listen);
    }
    config.check()?;
    Ok(config)
}

fn read(path: &Path) -> anyhow::Result<Table> {
    let text = std::fs::read_to_string(path)
        .with_context(|| Usage(format!("the configuration file {} cannot be read", path.display())))?;
    text.parse().map_err(|e: toml::de::Error| Usage(format!("{}: {}", path.display(), e.to_string().trim_end())).into())
}

fn merge(mut table: Table, path: Option<&Path>, env: &[(String, String)]) -> anyhow::Result<Config> {
    let known = Table::try_from(Config::default()).context("the default configuration cannot be written down")?;
    for (name, text) in env {
        let key = name.trim_start_matches("CURFEW_").to_lowercase();
        let Some(default) = known.get(&key) else {
            tracing::warn!(name, "this variable is not known and changes nothing; docs/configuration.md lists what there is");
            continue;
        };
        let value = match default {
            Value::Integer(_) => {
                Value::Integer(text.trim().parse().map_err(|_| Usage(format!("{name}=\"{text}\" is not a whole number")))?)
            }
            Value::Array(_) => Value::Array(
                text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| Value::String(s.to_owned())).collect(),
            ),
            Value::Table(_) => {
                let why = format!("{name}: {key} cannot be set by a variable; write [{key}.NAME] in the configuration file");
                return Err(Usage(why).into());
            }
            _ => Value::String(text.clone()),
        };
        table.insert(key.clone(), value);
        // Each by itself, so that the error names the variable and not a file that is fine.
        let alone = Table::from_iter(table.get(&key).map(|v| (key.clone(), v.clone())));
        alone.try_into::<Config>().map_err(|e| Usage(format!("{name}: {}", e.message())))?;
    }
    table.try_into().map_err(|e: toml::de::Error| {
        let place = path.map_or_else(|| "the configuration".to_owned(), |p| p.display().to_string());
        BadConfig(format!("{place}: {}", e.to_string().trim_end())).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_variable_wins_over_the_file_and_a_bad_one_is_named() {
        let file = || "job_stop_timeout = \"10s\"\nworkers = 3".parse::<Table>().unwrap();
        let c = merge(file(), None, &env(&[("CURFEW_JOB_STOP_TIMEOUT", "7s")])).unwrap();
        assert_eq!((c.job_stop_timeout.as_secs(), c.workers), (7, 3));
        for (k, v) in [("CURFEW_JOB_STOP_TIMEOUT", "7"), ("CURFEW_WORKERS", "many"), ("CURFEW_KINDS", "stop")] {
            let e = merge(file(), None, &env(&[(k, v)])).unwrap_err();
            assert!(e.to_string().contains(k), "{e}");
            assert_eq!(crate::exit::of(&e), Exit::Usage);
        }
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused_by_name() {
        let e = merge("job_stop_timout = \"10s\"".parse().unwrap(), None, &[]).unwrap_err();
        assert!(format!("{e:#}").contains("job_stop_timout"), "{e:#}");
    }
}
