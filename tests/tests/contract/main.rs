//! The contract: what Nomad does, a fact a case, on the embedded cluster always and on a real Nomad when
//! `CURFEW_TEST_NOMAD` names a binary. The same binary replays what was recorded of a real Nomad against the embedded one.
//!
//! ```text
//! cargo test -p curfew-tests --test contract                    # the embedded cluster, and the recordings
//! CURFEW_TEST_NOMAD=nomad cargo test -p curfew-tests --test contract -- --table
//! cargo test -p curfew-tests --test contract -- replay::        # the recordings alone
//! ```
//!
//! `--table` ends with the table: case, embedded cluster, real Nomad. A case is a line in [`CASES`] and a function that is
//! given a cluster; the numbers are those of the facts about Nomad in docs/ARCHITECTURE.md. A call that the gateway can make
//! and no case covers fails `routes::every_call_of_the_gateway_is_covered`. Recordings and the list of wanted differences are
//! in tests/fixtures.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table, and what was skipped")]

mod acl;
mod blocked;
mod changes;
mod clusters;
mod drains;
mod filters;
mod jobs;
mod kit;
mod nodes;
mod on;
mod replay;
mod rollouts;
mod routes;
mod runner;
mod signals;
mod stops;
mod streams;
mod tls;
mod told;
mod words;

use clusters::Which::{Guarded, Nodes, Plain, Shared, Tls};
use runner::{Case, cases};

/// Facts, cluster, function.
const CASES: &[Case] = cases![
    1 Shared stops::without_a_kill_signal_a_stop_is_sigint;
    1 Shared stops::with_sigterm_as_kill_signal_a_stop_is_sigterm;
    2 Shared words::a_kill_timeout_above_the_progress_deadline_is_refused;
    2 Shared rollouts::progress_deadline_zero_fails_at_the_first_unhealthy_allocation_and_reverts;
    2 Shared rollouts::a_long_progress_deadline_never_fails_a_flaky_version;
    2 Shared rollouts::without_rescheduling_it_fails_in_spite_of_a_long_progress_deadline;
    3 Plain stops::the_client_cuts_the_kill_timeout_silently;
    3 Plain nodes::the_agent_tells_its_max_kill_timeout;
    4 Nodes drains::the_deadline_kills_nothing;
    4 Nodes drains::batch_hears_nothing_before_the_deadline;
    4 Nodes drains::an_unhealthy_service_hears_nothing_before_the_deadline;
    4 Nodes drains::a_healthy_service_migrates_before_the_deadline;
    4 Nodes drains::without_a_deadline_batch_is_left_alone;
    4 Nodes drains::system_jobs_are_ignored_on_request;
    4 Nodes drains::cancelled_it_gives_the_node_back;
    4 Nodes drains::again_with_another_deadline;
    4 Nodes drains::meta_is_kept_in_last_drain;
    4 Nodes drains::what_runs_on_a_node_comes_with_its_jobs;
    5 Shared rollouts::the_replacement_waits_for_the_old_allocation;
    5 Shared rollouts::the_replacement_waits_on_another_node_too;
    6 Shared stops::a_purge_hides_a_living_process;
    6 Plain stops::system_gc_leaves_what_lives;
    7 Shared stops::inside_a_shutdown_delay_everything_says_pending;
    7 Nodes nodes::a_dead_client_makes_it_lost_and_back_it_runs;
    7 Nodes nodes::a_disconnect_block_makes_it_unknown;
    7 Nodes nodes::a_stopped_one_on_a_dead_node_lives_on;
    8 Shared signals::a_signal_answers_200;
    8 Shared signals::an_unknown_allocation;
    8 Shared signals::an_unknown_task;
    8 Shared signals::a_dead_task;
    8 Nodes nodes::no_path_to_a_dead_node;
    8 Nodes nodes::its_clock_is_asked_for_as_a_signal_is_sent;
    8 Shared signals::an_empty_task_is_every_task;
    8 Shared signals::an_empty_task_answers_500_when_one_was_dead;
    8 Shared signals::an_empty_task_hits_a_running_poststop_task;
    9 Shared told::an_untold_kill_is_answered_by_the_restart_policy;
    9 Shared told::a_sibling_failed;
    9 Shared told::a_sibling_failed_in_a_batch;
    9 Shared told::the_leader_ended;
    9 Shared told::all_main_tasks_ended;
    9 Shared told::max_run_duration;
    9 Shared told::restarted_through_the_api;
    9 Shared told::restarted_by_a_template;
    10 Shared stops::deleting_an_unknown_job;
    10 Shared stops::deleting_it_again_is_another_evaluation;
    11 Shared stops::after_a_kill_it_is_complete_with_exit_code_137;
    11 Shared stops::a_polite_one_is_complete_with_its_own_code;
    11 Shared signals::a_task_keeps_its_last_ten_events;
    11 Shared stops::a_poststop_task_runs_after_a_kill;
    12 Shared streams::the_buffer_comes_first;
    12 Shared streams::an_index_that_is_too_old_starts_later;
    12 Shared streams::topics_and_keys_choose;
    12 Shared streams::it_says_that_it_is_there_when_nothing_happens;
    12 Guarded acl::a_stream_without_the_right_is_silent;
    12 Guarded acl::an_open_stream_knows_no_later_namespace;
    13 Shared filters::into_task_states_and_events;
    13 Shared filters::a_bad_filter_is_refused_in_words;
    13 Shared filters::pages_of_allocations;
    13 Shared filters::pages_of_jobs_by_prefix_and_meta;
    13 Shared filters::pages_of_jobs_across_namespaces;
    13 Shared filters::a_long_poll_waits_for_news;
    13 Shared filters::a_long_poll_without_news_ends_with_its_wait;
    13 Shared filters::nodes_with_their_resources;
    14 Shared jobs::dispatching_twice_with_a_token_is_one_child;
    14 Shared jobs::stopping_a_parent_leaves_its_children;
    15 Shared words::what_asks_for_a_right_changes_nothing;
    15 Guarded acl::the_least_policy_works_for_every_call;
    15 Guarded acl::anonymous_and_unknown_tokens_are_refused;
    15 Guarded acl::lists_show_what_is_allowed;
    15 Guarded acl::what_is_in_a_hidden_namespace;
    15 Guarded acl::a_nodes_allocations_leave_out_what_is_hidden;
    15 Guarded acl::policies_are_checked_when_they_are_written;
    15 Guarded acl::tokens_are_made_and_deleted;
    16 Shared jobs::registered_again_it_lives_twice;
    16 Shared jobs::a_lower_count_stops_one;
    16 Shared jobs::a_stop_raises_the_version;
    16 Shared jobs::stopping_one_allocation_places_another;
    17 Shared rollouts::failing_a_deployment_rolls_it_back;
    17 Shared words::failing_an_unknown_deployment;
    18 Nodes drains::a_negative_deadline_tells_everything_at_once;
    19 Shared signals::unknown_signal_names_are_sigint;
    20 Nodes drains::eligibility_twice_and_nonsense;
    20 Shared signals::killing_it_twice;
    20 Shared jobs::registering_the_same_twice;
    0 Shared changes::canaries_wait_for_their_promotion;
    0 Shared changes::a_failed_deployment_ends_its_canaries;
    0 Shared changes::canaries_that_promote_themselves;
    0 Shared changes::a_deployment_is_paused_and_resumed;
    0 Shared changes::without_progress_it_fails_at_its_deadline_and_reverts;
    0 Shared changes::scaling;
    0 Shared changes::refused_scaling;
    0 Shared changes::going_back_to_a_version;
    0 Shared changes::refused_reverts;
    0 Shared changes::a_periodic_job_is_forced;
    0 Shared changes::refused_periodic_jobs;
    14 Shared changes::what_a_dispatch_needs;
    14 Shared changes::a_token_stands_for_its_child_after_its_end;
    0 Shared changes::plans_count_what_is_wanted;
    0 Shared changes::refusals_of_validate;
    0 Shared changes::an_allocation_is_stopped_and_restarted;
    0 Shared changes::a_system_job_runs_everywhere_once;
    0 Shared blocked::no_node_fits_the_constraint;
    0 Shared blocked::no_node_has_the_room;
    0 Shared blocked::distinct_hosts_leaves_some_waiting;
    13 Shared blocked::pages_and_what_they_refuse;
    0 Shared jobs::parse_canonical_and_not;
    0 Shared jobs::plan_and_validate_change_nothing;
    0 Shared jobs::versions_and_evaluation;
    0 Shared words::refused_specs;
    0 Shared words::unknown_things;
    0 Shared words::check_and_set;
    0 Shared words::leader_and_agent;
    0 Guarded acl::a_namespace_is_a_world_of_its_own;
    0 Tls tls::the_gateway_shows_its_certificate;
    0 Tls tls::what_is_wrong_names_what_to_mend;
];

fn main() {
    runner::main(CASES);
}
