//! What every backend must do. A backend's test file includes this module and says `contract!(open)`, where `open` is an async
//! function that gives an [`Opened`] empty store; each rule is then a test of its own. `contract!(open, shared)` is for those that
//! several processes may have open.

use std::any::Any;
use std::sync::Arc;

use curfew_store::Store;

pub mod drains;
pub mod fixtures;
pub mod interventions;
pub mod kinds;
pub mod leases;
pub mod model;
pub mod requests;
pub mod steps;
pub mod trail;
pub mod workers;

/// An empty store, and whatever must live as long as it does (a directory, a server).
pub struct Opened {
    pub store: Arc<dyn Store>,
    pub keep: Box<dyn Any>,
}

#[macro_export]
macro_rules! contract {
    ($open:path) => {
        $crate::contract!($open;
            requests: what_was_written_is_what_is_read, submits_never_join, a_stop_joins_the_live_one, a_finished_stop_takes_nobody_in,
                namespaces_are_apart, the_same_key_and_body_is_the_same_operation, a_key_with_another_body_is_refused,
                a_key_of_a_joined_request_is_remembered, a_long_list_of_demands_keeps_the_newest_unsent, lists_are_newest_first_and_paged;
            leases: due_rows_come_oldest_first, nudged_rows_come_first_and_early, other_kinds_stay, a_held_row_is_nobody_elses,
                an_expired_lease_is_taken_over, a_renewed_lease_does_not_expire, a_fenced_worker_writes_nothing,
                the_next_due_instant_is_known, limits_are_kept, each_kind_has_a_limit_of_its_own;
            steps: a_waiting_row_sleeps_until_its_time, a_finished_row_is_never_leased, a_join_hurries_a_waiting_row,
                a_join_while_running_makes_waiting_due_at_once, a_join_while_running_undoes_the_end, a_paused_row_stays,
                a_step_cannot_end_running, unknown_operations_are_named;
            trail: the_trail_tells_the_story_in_order, the_trail_has_no_gap_and_fails_together, the_trail_is_filtered_and_paged,
                clocks_are_replaced_by_key_and_removed, tokens_are_found_by_their_id_and_replaced, checks_write;
            interventions: what_never_began_is_cancelled_at_once, what_began_is_cancelled_by_its_next_step,
                a_cancel_that_comes_too_late_undoes_no_end, a_deadline_is_moved_both_ways,
                an_extension_while_a_step_sends_the_delete_wants_no_other, only_stops_have_a_deadline_to_move,
                a_failed_one_is_tried_again, a_released_row_is_due_and_its_holder_is_fenced, a_paused_operation_waits_for_somebody,
                interventions_on_nothing_are_named;
            kinds: nothing_of_a_paused_kind_is_leased, an_expired_lease_of_a_paused_kind_stays,
                every_kind_is_listed_and_kill_can_be_paused, one_controller_has_the_duty,
                the_queue_is_counted_and_the_holders_are_named, what_is_old_and_finished_is_removed,
                changes_are_told_after_they_are_written;
            drains: a_node_belongs_to_one_drain, a_set_has_all_its_nodes_or_none_and_may_have_more, a_childs_end_wakes_its_parent,
                what_is_done_to_a_set_is_done_to_its_children, a_deadline_that_is_not_there_cannot_be_later,
                a_set_that_is_tried_again_has_its_nodes_again;
            workers: a_row_has_one_holder, requests_at_once_make_one_stop, a_key_used_at_once_makes_one_operation,
                a_crowd_finishes_everything_once;
        );
    };
    ($open:path, shared) => {
        $crate::contract!($open);
        $crate::contract!($open; kinds: a_duty_that_ran_out_is_taken_over;);
    };
    ($open:path; $($group:ident: $($rule:ident),+;)+) => {
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                let Some(opened) = $open(stringify!($rule)).await else { return };
                $crate::contract::$group::$rule(std::sync::Arc::clone(&opened.store)).await;
                opened.store.close().await.unwrap();
                drop(opened.keep);
            }
        )+)+
    };
}
