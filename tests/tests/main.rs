//! Scenarios: each written once, run on the embedded cluster and, when `CURFEW_TEST_NOMAD` names a binary, on a real Nomad.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod shapes;
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
    ])
    .exit();
}
