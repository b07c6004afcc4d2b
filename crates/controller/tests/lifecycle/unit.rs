//! deploy/systemd against the code.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use curfew_controller::{CLEAN_UP, LONGEST_END};
use curfew_core::config::Config;

/// `Section.Key` to its values.
fn unit(file: &str) -> HashMap<String, Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut section = String::new();
    let mut all: HashMap<String, Vec<String>> = HashMap::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        match (line.strip_prefix('[').and_then(|l| l.strip_suffix(']')), line.split_once('=')) {
            (Some(name), _) => name.clone_into(&mut section),
            (None, Some((key, value))) => all.entry(format!("{section}.{key}")).or_default().push(value.to_owned()),
            (None, None) => panic!("neither a section nor a setting: {line}"),
        }
    }
    all
}

fn seconds(value: &str) -> Duration {
    Duration::from_secs(value.parse().unwrap_or_else(|_| panic!("{value} is not a number of seconds")))
}

#[test]
fn the_unit_file_fits_the_code() {
    let unit = unit("curfew.service");
    let one = |key: &str| match unit.get(key).map(Vec::as_slice) {
        Some([value]) => value.as_str(),
        other => panic!("{key}: {other:?}"),
    };
    assert_eq!(one("Service.Type"), "notify");
    assert_eq!(one("Service.NotifyAccess"), "main");
    assert_eq!(one("Service.Restart"), "on-failure");
    let granted = seconds(one("Service.TimeoutStopSec"));
    assert_eq!(granted, Duration::from_secs(30));
    assert_eq!(CLEAN_UP, Duration::from_secs(3));
    assert_eq!(Config::default().shutdown_timeout, Duration::from_secs(25));
    // Its runtime's own end is a fifth of a second.
    assert!(Config::default().shutdown_timeout + LONGEST_END + Duration::from_millis(200) < granted, "{LONGEST_END:?}");
    let watchdog = seconds(one("Service.WatchdogSec"));
    assert!(watchdog > Config::default().nomad_timeout, "a slow Nomad is no reason to restart");
    // The start has no bound of its own but the calls in it.
    assert!(seconds(one("Service.TimeoutStartSec")) > Config::default().nomad_timeout);
    let start = one("Service.ExecStart");
    assert!(start.contains(" serve "), "{start}");
    assert!(!unit.contains_key("Service.ExecReload"), "the configuration is read at the start only");
    let state = one("Service.StateDirectory");
    assert!(one("Service.Environment").contains(&format!("CURFEW_DATABASE=sqlite:/var/lib/{state}/")), "{unit:?}");
    assert_eq!(one("Install.WantedBy"), "multi-user.target");
}

/// It ends by itself, its two exit codes that are no failure are not one, and it is as hardened as the other.
#[test]
fn the_gcs_unit_is_as_the_controllers_and_its_timer_goes_as_often_as_the_controllers_own() {
    let (gc, controller, timer) = (unit("curfew-gc.service"), unit("curfew.service"), unit("curfew-gc.timer"));
    assert_eq!(gc["Service.Type"], ["oneshot"]);
    assert_eq!(gc["Service.SuccessExitStatus"], ["3 4"]);
    assert!(gc["Service.ExecStart"][0].starts_with("/usr/bin/curfew-gc --once --yes "), "{gc:?}");
    let hardens = |k: &str| {
        [
            "Protect",
            "Private",
            "Restrict",
            "System",
            "Lock",
            "Memory",
            "NoNew",
            "Capability",
            "Ambient",
            "UMask",
            "Dynamic",
            "Remove",
        ]
        .iter()
        .any(|p| k.starts_with(&format!("Service.{p}")))
    };
    let hardening = controller.iter().filter(|(k, _)| hardens(k)).collect::<Vec<_>>();
    assert!(hardening.len() > 20, "{hardening:?}");
    for (key, values) in hardening {
        assert_eq!(gc.get(key), Some(values), "{key}");
    }
    // The controller's name in a lease is the machine's: it must see it.
    assert!(!controller.contains_key("Service.ProcSubset"));
    assert_eq!(timer["Timer.OnUnitActiveSec"], ["15min"]);
    assert_eq!(Config::default().gc_interval, Duration::from_secs(15 * 60));
}
