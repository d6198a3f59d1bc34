"""Tests whose many cases repeat one property at length: the default suite runs some of them, ``make test-slow`` all.

Kept by default are the first case, and from there one in so many: cases of one test differ in seeds,
methods and architectures, which others of its file run.
"""

from collections import Counter
from collections.abc import Sequence

import pytest

ONE_IN = {
    "alignment/test_align.py::test_the_order_of_the_sources_does_not_matter": 2,
    "alignment/test_block_matching.py::test_blocks_stay_whole_in_one_order_whatever_the_order_of_the_sources": 2,
    "alignment/test_block_matching.py::test_permutations_are_found": 2,
    "alignment/test_both.py::test_permutations_are_found": 2,
    "alignment/test_similarity.py::test_similarities_over_all_batches_and_values": 2,
    "allocation/test_allocation.py::test_every_allocation_keeps_to_every_budget": 2,
    "methods/test_adamerging.py::test_the_gradient_is_that_of_finite_differences": 2,
    "methods/test_checks.py::test_students_are_no_wider_than_was_told_before_units_were_matched": 2,
    "methods/test_invariants.py::test_budgets_together_are_budgets_alone": 3,
    "methods/test_invariants.py::test_every_way_to_fit_sequentially_runs": 2,
    "methods/test_invariants.py::test_one_trunk_keeps_unequal_heads_at_every_budget": 2,
    "methods/test_invariants.py::test_permuted_copies_merge_to_themselves": 2,
    "methods/test_invariants.py::test_same_seed_same_student_and_sources_untouched": 2,
    "methods/test_invariants.py::test_sources_apart_keep_their_own_heads": 2,
    "methods/test_leading.py::test_the_leader_stays_whole": 2,
    "methods/test_mats.py::test_sources_that_agree_come_back": 2,
    "methods/test_smile.py::test_every_kind_of_layer_in_full": 2,
    "methods/test_smile.py::test_in_full_and_sent_to_one_source_it_is_that_source": 2,
    "methods/test_structured_arithmetic.py::test_permuted_copies_merge_to_themselves": 3,
    "methods/test_structured_merges.py::test_a_fit_comes_nearer_to_the_sources": 2,
    "methods/test_structured_merges.py::test_permuted_copies_merge_to_themselves": 3,
    "methods/test_structured_merges.py::test_the_start_is_the_mean_of_the_permuted_sources": 2,
    "methods/test_tuned.py::test_it_picks_what_brute_force_picks": 2,
    "methods/test_tuned.py::test_what_is_not_finite_never_wins": 2,
    "methods/test_wemoe.py::test_untrained_it_is_task_arithmetic": 2,
    "methods/test_zipit.py::test_grouped_convolutions_are_products_with_the_matrices": 2,
    "methods/test_zipit.py::test_permuted_copies_merge_to_themselves": 2,
    "methods/test_zipit.py::test_structured_networks": 2,
    "models/test_architectures.py::test_logits_have_one_column_for_each_class": 2,
    "models/test_recognise.py::test_shapes_tell_the_architecture": 2,
    "runtime/test_memory.py::test_a_fit_that_waits_on_disk_is_the_same_fit": 2,
    "student/test_formats.py::test_every_kind_comes_back_bit_for_bit": 2,
    "test_devices.py::test_methods_stay_on_the_device_of_their_sources": 2,
}
"""Test -> of its cases that are not slow anyway, one in so many is not."""


def thin_out(items: Sequence[pytest.Item]) -> None:
    """Mark what repeats other cases as slow."""
    seen: Counter[str] = Counter()
    for item in items:
        test = f"{item.path.relative_to(item.config.rootpath / 'tests').as_posix()}::{item.name.partition('[')[0]}"
        if test in ONE_IN and item.get_closest_marker("slow") is None:
            if seen[test] % ONE_IN[test]:
                item.add_marker("slow")
            seen[test] += 1
