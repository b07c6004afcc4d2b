//! Scenarios: each written once, run on the embedded cluster and, when `CURFEW_TEST_NOMAD` names a binary, on a real Nomad.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod access;
mod cli;
mod crash;
mod database;
mod deploy;
mod devcluster;
mod doctor;
mod drain_cli;
mod drains;
mod gc;
mod labs;
mod lessons;
mod nodes;
mod nomad_api;
mod queue;
mod rollouts;
mod runbooks;
mod shapes;
mod shutdown;
mod spec;
mod stop;
mod told;
mod traces;
mod two;

use curfew_tests::{run, scenarios};

fn main() {
    run::main(scenarios![
        BOTH: stop::impolite, stop::fail_on_kill, stop::polite, stop::the_authors_kill_timeout_is_the_grace,
            stop::detach_prints_the_id_and_watch_follows_it, stop::a_second_stop_joins_and_the_earlier_deadline_wins,
            stop::unknown_job, stop::stopped_already, stop::every_allocation_of_every_group;
        BOTH: shapes::shutdown_delay, shapes::no_shutdown_delay_skips_it, shapes::shutdown_delay_of_a_group,
            shapes::two_tasks_of_which_one_is_polite, shapes::lesson_27_a_poststop_task_runs_to_its_end,
            shapes::a_poststop_task_that_hangs_has_its_own_clock, shapes::a_process_tree, shapes::a_dispatched_child,
            shapes::an_id_with_a_dot_and_unicode, shapes::an_id_with_a_space_is_refused_in_nomads_words;
        BOTH: told::a_sibling_fails, told::a_sibling_fails_in_a_batch, told::the_leader_ends,
            told::the_main_task_ends_beside_a_sidecar, told::max_run_duration, told::restarted_through_the_api,
            told::restarted_by_a_template, told::replaced_by_a_new_version, told::scaled_down;
        BOTH: rollouts::a_new_version_rolls_in_one_by_one, rollouts::an_impolite_old_version_is_killed_by_its_clock,
            rollouts::a_flaky_version_is_reverted_by_the_deadline, rollouts::killed_in_the_middle_it_comes_to_the_same_end,
            rollouts::canaries_wait_for_their_promotion, rollouts::a_newer_version_and_a_stop_supersede,
            rollouts::what_has_no_place_says_which_constraint, rollouts::without_a_deployment,
            rollouts::a_system_job_rolls_node_by_node,
            rollouts::a_count_change_the_same_again_and_an_index,
            rollouts::a_success_that_crashes_later_shows_in_its_status, rollouts::stop_all_by_prefix_and_purge_when_dead;
        BOTH: labs::pollers;
        BOTH: crash::registered_again_after_its_stop, crash::killed_and_back_after_the_clock,
            crash::killed_and_back_before_the_clock, crash::a_restart_with_many_stops_in_flight,
            crash::sigterm_ends_it_quickly_with_0, crash::a_waiting_command_survives_the_restart,
            crash::a_lost_database_loses_no_clock, crash::killed_before_nomad_was_told;
        BOTH: nodes::unreachable_at_the_clock, nodes::max_kill_timeout_of_30s_warns_by_name,
            nodes::a_raised_max_kill_timeout_does_not_warn, nodes::the_server_restarts_in_the_middle_of_a_stop,
            nodes::cut_off_right_after_the_request, nodes::event_streams_that_break,
            nodes::what_waits_is_not_listed_while_nothing_changes;
        DEV: nodes::lesson_24_silent_events_cost_a_resync_and_no_kill;
        BOTH: spec::unknown_fields_reach_nomad_unchanged, spec::hcl_is_parsed_by_nomad_and_the_authors_timeout_is_kept,
            spec::the_same_spec_again_restarts_nothing, spec::the_jobspecs_of_the_repository;
        BOTH: lessons::lesson_1_the_namespace_is_named_and_a_404_is_no_success,
            lessons::lesson_2_the_signal_goes_to_the_client_by_task, lessons::lesson_4_the_clock_survives_two_restarts,
            lessons::lesson_5_stopped_before_anything_runs,
            lessons::lesson_6_a_submit_survives_a_crash_and_happens_once,
            lessons::lesson_10_a_refused_sigkill_is_sent_again, lessons::lesson_14_repeated_events_kill_nobody,
            lessons::lesson_14_an_ordinary_restart_is_left_alone,
            lessons::lesson_22_a_failing_delete_is_told_and_repeated,
            lessons::lesson_22_a_404_of_the_signal_is_not_the_end,
            lessons::lesson_25_an_unmanaged_job_is_left_to_nomad,
            lessons::lesson_25_an_unmanaged_job_stops_when_asked,
            lessons::lesson_26_a_stop_waits_for_processes_not_for_a_status;
        BOTH: nomad_api::agents_nodes_and_leader, nomad_api::parse_and_refusals_in_nomads_words,
            nomad_api::filters_find_odd_ids_and_nothing_else;
        BOTH: cli::broken_hcl_names_file_line_and_column, cli::unknown_driver, cli::not_a_job, cli::the_token_is_wrong;
        DEV: cli::a_closed_standard_output, cli::a_second_controller_on_the_same_port,
            cli::a_controller_that_is_ready_says_who_it_is;
        DEV: devcluster::the_lines_of_its_page_work, devcluster::the_official_command_line;
        NONE: labs::a_line_is_compared_without_what_changes, cli::no_file_an_empty_file_a_folder, cli::a_duration_without_a_unit, cli::no_controller_or_something_else,
            cli::the_certificates_of_dev_are_wrong, cli::nomad_is_not_there, cli::the_configuration_is_wrong;
        BOTH: doctor::a_healthy_cluster, doctor::a_node_with_the_default_max_kill_timeout, doctor::a_server_without_a_leader,
            doctor::a_node_that_is_down, doctor::a_read_only_token;
        NONE: access::off_loopback_it_does_not_start_without;
        DEV: access::the_first_token_is_made_on_the_database, access::over_tls_with_a_certificate,
            access::a_client_survives_the_kill_of_the_one_it_talks_to, access::a_generated_python_client;
        REAL: access::a_task_calls_with_its_workload_identity;
        NONE: doctor::nothing_there_or_something_else, doctor::tls_that_does_not_fit, doctor::bad_configuration,
            doctor::interrupted;
        BOTH: queue::an_extended_stop_kills_later_and_a_new_request_sooner_again, queue::kill_now_kills_now,
            queue::cancelled_after_its_delete_it_says_what_cannot_be_taken_back, queue::a_paused_kind_keeps_its_rows_queued,
            queue::while_kill_is_paused_nobody_dies_and_then_at_once, queue::a_followed_trail_survives_a_restart;
        DEV: queue::confirm_drained_names_who_holds_what;
        NONE: shutdown::a_signal_while_it_starts;
        DEV: shutdown::a_nomad_that_hangs, shutdown::a_second_signal, shutdown::what_systemd_is_told;
        DEV: drains::a_datacenter_is_empty_by_the_deadline, drains::what_is_refused, drains::one_node_at_a_time, drains::a_node_that_dies_and_comes_back;
        BOTH: drains::what_the_token_hides_is_no_empty_node, drains::batch_hears_of_it_in_time, drains::killed_in_the_middle_the_deadline_holds,
            drains::cancelled_by_an_undrain_it_gives_the_nodes_back, drains::somebody_elses_drain_is_left_alone,
            drains::extended_hurried_and_paused, drains::a_set_is_paused_between_its_nodes_and_hurried,
            drains::nodes_that_appear_and_leave, drains::nobody_is_left_but_nomad_and_the_gc;
        DEV: drains::its_keeper_is_killed_in_the_middle;
        DEV: drain_cli::a_datacenter_from_the_plan_to_the_undrain, drain_cli::of_a_node_as_json_one_object_a_line,
            drain_cli::a_watch_survives_the_controller, drain_cli::what_was_typed_wrong_and_what_is_in_the_way,
            drain_cli::on_a_terminal;
        BOTH: gc::a_lost_controller_and_a_lost_database, gc::leftovers_of_every_kind, gc::more_than_the_cap, gc::two_at_once,
            gc::a_purge_never_hides_a_living_task, gc::a_node_that_is_away, gc::a_live_stop_is_the_controllers,
            gc::beside_the_controller, gc::the_jobspec, gc::a_child_is_stopped_through_the_controller,
            gc::leftovers_of_operations, gc::paused_clocks_are_paused_for_it_too;
        DEV: gc::a_read_that_was_long_on_its_way;
        NONE: gc::without_a_terminal_it_wants_a_word;
        DEV: traces::one_for_each_operation, traces::without_a_collector;
        NONE: runbooks::every_page_is_run;
        DEV: runbooks::getting_started, runbooks::drain_a_datacenter, runbooks::stop_the_controller, runbooks::pause_a_kind, runbooks::stuck_operation,
            runbooks::a_node_that_will_not_die, runbooks::a_lost_database;
        NONE: deploy::prometheus, deploy::units, deploy::the_package, deploy::what_is_made_from_the_arguments,
            deploy::the_example_configuration;
        BOTH: deploy::the_policy_is_enough_for_a_stop;
        DEV: deploy::two_controllers_as_nomad_jobs;
        DEV: database::locked_by_another_controller, database::a_folder_a_missing_folder_another_file,
            database::not_writable, database::disk_full, database::a_full_disk_at_the_start, database::a_newer_schema;
        // The most work, and last: the bounds of the others are for a machine that keeps up.
        DEV: two::one_is_killed_in_the_middle, two::one_sleeps_longer_than_its_lease, two::their_database_restarts;
    ])
    .exit();
}
