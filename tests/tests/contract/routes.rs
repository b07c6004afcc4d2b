//! The reverse check: every call that the gateway can make is made by a case that says so.

use std::collections::BTreeSet;

use libtest_mimic::Failed;

use crate::on::On;
use crate::runner::Case;

/// A call, and the case that holds it to its word. A case that does not make its call fails.
const COVERED: &[(&str, &str)] = &[
    ("POST /v1/jobs/parse", "jobs::parse_canonical_and_not"),
    ("PUT /v1/jobs", "jobs::registering_the_same_twice"),
    ("PUT /v1/job/:job/plan", "jobs::plan_and_validate_change_nothing"),
    ("PUT /v1/validate/job", "jobs::plan_and_validate_change_nothing"),
    ("GET /v1/job/:job", "jobs::a_stop_raises_the_version"),
    ("GET /v1/job/:job/versions", "jobs::versions_and_evaluation"),
    ("DELETE /v1/job/:job", "stops::deleting_an_unknown_job"),
    ("GET /v1/job/:job/allocations", "stops::after_a_kill_it_is_complete_with_exit_code_137"),
    ("GET /v1/jobs", "filters::pages_of_jobs_by_prefix_and_meta"),
    ("PUT /v1/job/:job/dispatch", "words::what_asks_for_a_right_changes_nothing"),
    ("GET /v1/allocations", "filters::into_task_states_and_events"),
    ("GET /v1/allocation/:alloc", "stops::after_a_kill_it_is_complete_with_exit_code_137"),
    ("PUT /v1/client/allocation/:alloc/signal", "signals::a_signal_answers_200"),
    ("GET /v1/evaluation/:eval", "jobs::versions_and_evaluation"),
    ("GET /v1/deployments", "rollouts::failing_a_deployment_rolls_it_back"),
    ("GET /v1/deployment/:deployment", "rollouts::failing_a_deployment_rolls_it_back"),
    ("PUT /v1/deployment/fail/:deployment", "rollouts::failing_a_deployment_rolls_it_back"),
    ("PUT /v1/deployment/promote/:deployment", "changes::canaries_wait_for_their_promotion"),
    ("GET /v1/job/:job/deployments", "changes::canaries_wait_for_their_promotion"),
    ("GET /v1/job/:job/evaluations", "blocked::no_node_fits_the_constraint"),
    ("GET /v1/nodes", "filters::nodes_with_their_resources"),
    ("GET /v1/node/:node", "filters::nodes_with_their_resources"),
    ("GET /v1/node/:node/allocations", "drains::what_runs_on_a_node_comes_with_its_jobs"),
    ("PUT /v1/node/:node/drain", "drains::meta_is_kept_in_last_drain"),
    ("PUT /v1/node/:node/eligibility", "words::what_asks_for_a_right_changes_nothing"),
    ("GET /v1/client/stats", "nodes::its_clock_is_asked_for_as_a_signal_is_sent"),
    ("GET /v1/agent/members", "words::leader_and_agent"),
    ("PUT /v1/node/:node/drain", "drains::cancelled_it_gives_the_node_back"),
    ("GET /v1/agent/self", "words::leader_and_agent"),
    ("GET /v1/status/leader", "words::leader_and_agent"),
    ("GET /.well-known/jwks.json", "words::leader_and_agent"),
    ("GET /v1/event/stream", "streams::the_buffer_comes_first"),
];

pub fn covered(cases: &[Case]) -> Result<(), Failed> {
    let names: BTreeSet<String> = cases.iter().map(crate::runner::name).collect();
    let mut wrong = vec![];
    for route in curfew_nomad::routes() {
        if !COVERED.iter().any(|(r, case)| *r == route && names.contains(*case)) {
            wrong.push(format!("the gateway can call {route}, and no case of the contract covers it"));
        }
    }
    for (route, _) in COVERED {
        if !curfew_nomad::routes().any(|r| r == *route) {
            wrong.push(format!("{route} is covered, but the gateway no longer calls it"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// Whether a case made the calls that it covers.
pub fn kept(case: &str, on: &On) -> Result<(), String> {
    let called = on.called();
    for (route, _) in COVERED.iter().filter(|(_, c)| *c == case) {
        if !called.contains(*route) {
            return Err(format!("it says that it covers {route}, and called only {called:?}"));
        }
    }
    Ok(())
}
