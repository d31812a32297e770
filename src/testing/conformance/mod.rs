//! The suite that every backing store must pass.
//!
//! [`store_conformance!`](crate::store_conformance) turns the suite into one test per claim;
//! [`run`] runs all of it in one go. A claim that does not hold panics and says what was seen.
//!
//! ```
//! use std::sync::Arc;
//! use tidings::store::{Memory, Store};
//!
//! async fn memory() -> Arc<dyn Store> {
//!     Arc::new(Memory::new())
//! }
//!
//! tidings::store_conformance!(memory_conforms, memory);
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! # tidings::testing::conformance::run(memory).await;
//! # }
//! ```
//!
//! Each claim works in a namespace of its own, so claims may share one server and run at once. They
//! need the store's real clock to move: under Tokio's paused time a claim about expiry would wait
//! for a clock that nobody turns. Hints may be lost by the contract; on the machine where this suite
//! runs none may be.

#![expect(
    clippy::missing_panics_doc,
    reason = "every claim panics if it does not hold"
)]

mod fills;
mod guards;
mod harness;
mod hints;
mod log;
mod many;
mod puts;
mod raw;
mod record;
mod rooms;
mod tags;

pub use fills::*;
pub use guards::*;
pub use harness::Harness;
pub use hints::*;
pub use log::*;
pub use many::*;
pub use puts::*;
pub use raw::*;
pub use record::*;
pub use rooms::*;
pub use tags::*;

use crate::store::Store;
use std::sync::Arc;

/// Hands the list of all claims to the macro `$with`, after its own arguments.
#[doc(hidden)]
#[macro_export]
macro_rules! __store_claims {
    ([$($with:tt)+] $args:tt) => {
        $($with)+! {
            $args
            // The record.
            the_first_record_stands_and_every_poll_gives_it
            a_record_replaces_the_one_it_expects_and_no_other
            of_many_who_register_at_once_one_wins
            two_namespaces_share_no_record
            // The log.
            touch_opens_an_epoch_where_there_is_none
            touch_keeps_what_stands
            touch_answers_in_the_order_asked
            an_invalidation_of_an_empty_lane_opens_an_epoch
            entries_chain_by_nonce_without_holes
            concurrent_invalidations_of_two_links_make_one_chain
            log_since_starts_at_the_number_asked_and_keeps_the_limit
            a_fence_opens_an_epoch_that_continues_nothing
            a_fence_that_expects_another_epoch_changes_nothing
            a_poll_gives_every_head_in_order_and_none_where_there_is_none
            // Leases and fills.
            concurrent_leases_grant_one
            a_lease_ends_with_its_ttl
            a_fill_under_the_lease_is_read_back
            a_proven_read_gives_what_a_read_gives
            a_put_never_takes_the_place_of_a_value_that_is_not_older
            a_put_without_a_version_to_compare_with_only_invalidates
            a_put_does_not_outlive_its_epoch
            a_put_is_logged_as_an_invalidation
            a_fill_after_an_invalidation_is_refused
            a_fill_after_a_fence_is_refused
            a_fill_with_another_token_is_refused
            a_repeated_fill_is_refused
            a_refresh_replaces_the_value_it_names
            a_refresh_that_raced_an_invalidation_is_refused
            a_refresh_after_a_fence_is_refused
            of_two_refreshes_of_one_value_the_second_is_refused
            a_refresh_replaces_no_lease
            a_release_frees_the_key
            a_release_with_another_token_frees_nothing
            a_present_value_wins_over_the_lease
            unusable_bytes_count_as_absent_only_while_they_stand_there
            a_clear_raises_the_floor_above_what_was_stored
            a_clear_of_what_nobody_keeps_leaves_no_floor
            a_lease_sets_a_missing_floor
            a_value_of_a_dead_epoch_counts_as_absent
            one_invalidation_removes_many_values
            any_bytes_are_kept_as_they_are
            a_value_without_ttl_outlives_those_with_one
            a_ttl_below_the_resolution_rounds_up
            two_namespaces_share_nothing
            // Guards.
            nothing_is_leased_while_a_marker_stands
            a_marker_is_beside_no_other_key_and_for_whatever_name_of_its_own
            a_guard_is_logged_as_an_invalidation_and_removes_what_stood
            a_guard_lifts_its_own_markers_alone_and_counts_them
            a_marker_ends_with_its_ttl
            a_marker_left_again_ends_with_the_later_ttl
            no_other_step_lifts_a_marker
            a_guard_that_lifts_may_leave_a_marker_of_another
            a_minimum_version_is_told_with_every_lease_of_its_key
            a_fill_that_was_leased_before_a_minimum_version_is_refused
            of_two_minimum_versions_the_higher_counts
            a_minimum_version_ends_with_its_time_and_no_sooner
            of_many_keys_each_has_its_own_minimum_version
            of_many_keys_each_has_its_own_markers
            // Many keys.
            many_keys_are_leased_filled_and_read_as_each_alone
            of_many_fills_each_replaces_what_it_says
            a_key_named_twice_is_granted_once
            no_keys_are_no_answers
            unusable_bytes_are_those_of_their_own_key
            a_waiter_hears_of_its_fill_among_many
            // Tags.
            a_missing_tag_floor_is_set_to_where_the_log_stands
            tag_floors_come_with_the_heads_of_their_lanes_in_order
            an_invalidation_raises_the_floor_of_its_tag_alone
            an_invalidation_of_a_tag_that_nobody_asked_for_leaves_no_floor
            a_clear_raises_the_floors_of_its_name_and_of_all_tags_of_it
            a_tag_floor_ends_with_the_longest_time_that_was_asked_for
            a_tag_floor_comes_with_the_epoch_that_a_fence_opened
            // Hints.
            hints_carry_the_entries_of_the_log
            every_link_hears_what_is_published_after_its_connect
            a_waiter_hears_of_the_fill
            a_waiter_hears_of_the_release
            a_fill_that_nobody_waits_for_is_silent
            two_namespaces_do_not_hear_each_other
            // Raw data.
            raw_values_are_kept_under_any_bytes
            raw_values_are_given_in_the_order_asked
            a_raw_value_takes_the_place_of_what_stood_there
            a_raw_value_ends_with_its_ttl
            a_raw_ttl_is_changed_and_taken_away
            a_raw_ttl_below_the_resolution_rounds_up
            removing_raw_keys_counts_those_that_were_there
            raw_hashes_keep_fields_and_end_with_the_last
            a_raw_hash_keeps_its_ttl_as_fields_come_and_go
            raw_values_and_hashes_are_told_apart
            a_raw_scan_gives_every_key_that_stays
            a_raw_scan_removes_what_it_is_told_to
            a_walk_over_a_raw_hash_gives_every_field_that_stays
            raw_lanes_prefixes_and_namespaces_share_nothing
            // Rooms.
            members_of_a_room_are_found_counted_and_listed
            a_member_of_two_holds_leaves_with_the_last
            the_newest_meta_wins_and_keep_leaves_it
            a_hold_that_does_not_stand_changes_nothing
            an_empty_room_is_gone_and_opens_again_with_another_epoch
            a_released_hold_takes_its_members_along
            members_go_when_the_lease_of_their_hold_ends
            a_beat_removes_what_has_ended
            a_beat_renews_a_hold
            a_beat_answers_for_many_rooms_in_order
            pages_walk_a_room_in_the_order_of_bytes
            a_page_of_large_metas_is_cut_short_and_says_so
            events_of_a_room_are_numbered_without_holes
            only_who_watches_a_room_hears_of_it
            two_namespaces_share_no_room
        }
    };
}

/// Declares a module `$name` with one `#[tokio::test]` for each claim of the suite.
///
/// `$make` is an async function or closure without arguments that gives an `Arc<dyn Store>`; it is
/// called once for each claim. See [`testing::conformance`](crate::testing::conformance).
#[macro_export]
macro_rules! store_conformance {
    ($name:ident, $make:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "what the store is made of may stand outside")]
            use super::*;
            $crate::__store_claims!([$crate::__store_claim_tests]($make));
        }
    };
}

/// One test for each claim.
#[doc(hidden)]
#[macro_export]
macro_rules! __store_claim_tests {
    (($make:expr) $($claim:ident)*) => {$(
        #[::tokio::test]
        async fn $claim() {
            let harness = $crate::testing::conformance::Harness::new(($make)().await);
            $crate::testing::conformance::$claim(&harness).await;
        }
    )*};
}

macro_rules! run_claims {
    (($make:ident) $($claim:ident)*) => {$(
        $claim(&Harness::new($make().await)).await;
    )*};
}

/// Runs every claim of the suite, one after the other, each on a store of `make`.
///
/// # Panics
/// At the first claim that does not hold.
///
/// # Cancel safety
/// Cancel safe; what the claims stored stays in their namespaces.
pub async fn run(make: impl AsyncFn() -> Arc<dyn Store>) {
    __store_claims!([run_claims](make));
}
