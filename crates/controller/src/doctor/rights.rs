//! What the token may do.

use curfew_core::doctor::Check;
use curfew_nomad::{AgentSelf, Error, May, Right};
use futures::future::join_all;

use super::{Doctor, Why, ask};

struct Need {
    name: &'static str,
    /// What does not work without it. `Err`: every promise can be kept all the same.
    breaks: Result<&'static str, &'static str>,
    /// The line of a policy that grants it.
    policy: &'static str,
}

fn need(right: Right) -> Need {
    let (name, breaks, policy) = match right {
        Right::SubmitJob => {
            ("acl submit-job", Ok("nothing can be submitted or stopped"), r#"namespace "*" { capabilities = ["submit-job"] }"#)
        }
        Right::ReadJob => (
            "acl read-job",
            Ok("Curfew sees no allocation, so it keeps no kill clock"),
            r#"namespace "*" { capabilities = ["read-job"] }"#,
        ),
        Right::ReadEverywhere => (
            "acl every namespace",
            Ok(
                "no event stream, and a drain would miss what it does not see; it takes read-job in every namespace and node read",
            ),
            r#"namespace "*" { capabilities = ["read-job"] }"#,
        ),
        Right::AllocLifecycle => {
            ("acl alloc-lifecycle", Ok("no SIGKILL can be sent"), r#"namespace "*" { capabilities = ["alloc-lifecycle"] }"#)
        }
        Right::NodeRead => {
            ("acl node read", Ok("no event stream, and no word about nodes that are away"), r#"node { policy = "write" }"#)
        }
        Right::AgentRead => {
            ("acl agent read", Err("a node's max_kill_timeout can be read from its meta alone"), r#"agent { policy = "read" }"#)
        }
        Right::ListJobs => ("acl list-jobs", Err("no call needs it yet"), r#"namespace "*" { capabilities = ["list-jobs"] }"#),
        Right::DispatchJob => {
            ("acl dispatch-job", Err("no call needs it yet"), r#"namespace "*" { capabilities = ["dispatch-job"] }"#)
        }
        Right::NodeWrite => ("acl node write", Err("no call needs it yet"), r#"node { policy = "write" }"#),
    };
    Need { name, breaks, policy }
}

impl Doctor<'_> {
    pub(super) async fn rights(&self, agent: &Result<AgentSelf, Why>) -> Vec<Check> {
        let config = self.nomad.config();
        let source = &config.token_source;
        let acl = match agent {
            Ok(a) if !a.acl_enabled => return vec![Check::ok("acl", "off: whoever reaches Nomad may do everything")],
            Ok(_) | Err(Why::Nomad(Error::PermissionDenied { .. })) if config.token.is_some() => {
                Check::ok("acl", format!("on; the token of {source} was sent"))
            }
            Ok(_) | Err(Why::Nomad(Error::PermissionDenied { .. })) => {
                Check::warning("acl", "on; no token was sent", format!("set {source} to a token with the policy of the README"))
            }
            Err(why) => Check::not_checked("acl", why.text()),
        };
        let asked = join_all(Right::ALL.map(|right| async move { (right, ask(self.nomad.may(right)).await) })).await;
        let nothing = config.token.is_some() && asked.iter().all(|(_, may)| matches!(may, Ok(May::No | May::NotTold(_))));
        let acl = if nothing {
            let remedy = format!("set {source} to a token of this cluster that has not expired");
            Check::failed("acl", format!("on; the token of {source} is not known, or may do nothing"), remedy)
        } else {
            acl
        };
        let rows = asked.into_iter().map(|(right, may)| match may {
            Ok(may) => self.judge(right, may),
            Err(why) => Check::not_checked(need(right).name, why.text()),
        });
        [acl].into_iter().chain(rows).collect()
    }

    fn judge(&self, right: Right, may: May) -> Check {
        let Need { name, breaks, policy } = need(right);
        let place = match right {
            Right::SubmitJob | Right::ReadJob | Right::ListJobs | Right::DispatchJob => {
                format!(" in namespace {}", self.nomad.config().namespace)
            }
            _ => String::new(),
        };
        let missing = |words: &str, remedy: String| match breaks {
            Ok(breaks) => Check::failed(name, format!("{words}{place}: {breaks}"), remedy),
            Err(breaks) => Check::warning(name, format!("{words}{place}: {breaks}"), remedy),
        };
        match may {
            May::Yes => Check::ok(name, format!("granted{place}")),
            May::No => missing("missing", format!("add to the token's policy: {policy}")),
            May::Refused(words) => missing(&format!("refused ({words})"), "ask whoever runs this Nomad why".into()),
            May::NotTold(why) => Check::not_checked(name, why),
        }
    }
}
