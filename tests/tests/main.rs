//! Scenarios: each written once, run on the embedded cluster and, when `CURFEW_TEST_NOMAD` names a binary, on a real Nomad.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod crash;
mod nodes;
mod shapes;
mod spec;
mod stop;
mod told;

use curfew_tests::{run, scenarios};

fn main() {
    run::main(scenarios![
        BOTH: stop::impolite, stop::fail_on_kill, stop::polite, stop::the_authors_kill_timeout_is_the_grace,
            stop::detach_prints_the_id_and_watch_follows_it, stop::a_second_stop_joins_and_the_earlier_deadline_wins,
            stop::unknown_job, stop::stopped_already, stop::every_allocation_of_every_group;
        BOTH: shapes::shutdown_delay, shapes::no_shutdown_delay_skips_it, shapes::shutdown_delay_of_a_group,
            shapes::two_tasks_of_which_one_is_polite, shapes::a_poststop_task_runs_to_its_end,
            shapes::a_poststop_task_that_hangs_has_its_own_clock, shapes::a_process_tree, shapes::a_dispatched_child,
            shapes::an_id_with_a_dot_and_unicode, shapes::an_id_with_a_space_is_refused_in_nomads_words;
        BOTH: told::a_sibling_fails, told::a_sibling_fails_in_a_batch, told::the_leader_ends,
            told::the_main_task_ends_beside_a_sidecar, told::max_run_duration, told::restarted_through_the_api,
            told::restarted_by_a_template, told::replaced_by_a_new_version, told::scaled_down;
        BOTH: crash::registered_again_after_its_stop, crash::killed_and_back_after_the_clock,
            crash::killed_and_back_before_the_clock, crash::a_restart_with_many_stops_in_flight,
            crash::sigterm_ends_it_quickly_with_0, crash::a_waiting_command_survives_the_restart,
            crash::a_lost_database_loses_no_clock, crash::killed_before_nomad_was_told;
        BOTH: nodes::unreachable_at_the_clock, nodes::max_kill_timeout_of_30s_warns_by_name,
            nodes::a_raised_max_kill_timeout_does_not_warn, nodes::the_server_restarts_in_the_middle_of_a_stop,
            nodes::cut_off_right_after_the_request, nodes::event_streams_that_break;
        DEV: nodes::silent_events_cost_a_resync_and_no_kill;
        BOTH: spec::unknown_fields_reach_nomad_unchanged, spec::hcl_is_parsed_by_nomad_and_the_authors_timeout_is_kept,
            spec::the_same_spec_again_restarts_nothing, spec::the_jobspecs_of_the_repository;
    ])
    .exit();
}
