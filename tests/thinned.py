"""Tests whose many cases repeat one property at length: the default suite runs some of them, ``make test-slow`` all.

Kept by default are the first case, and from there one in so many: cases of one test differ in seeds,
methods and architectures, which others of its file run.
"""

from collections import Counter
from collections.abc import Sequence

import pytest

ONE_IN = {
    "alignment/test_align.py::test_by_activations": 3,
    "alignment/test_align.py::test_the_order_of_the_sources_does_not_matter": 2,
    "alignment/test_align.py::test_weights_of_matched_sources_are_more_alike": 2,
    "alignment/test_block_matching.py::test_blocks_stay_whole_in_one_order_whatever_the_order_of_the_sources": 2,
    "alignment/test_block_matching.py::test_permutations_are_found": 4,
    "alignment/test_both.py::test_every_group_is_matched_in_the_best_way_as_the_others_stand": 3,
    "alignment/test_both.py::test_permutations_are_found": 2,
    "alignment/test_similarity.py::test_similarities_over_all_batches_and_values": 2,
    "alignment/test_zip.py::test_where_what_was_merged_is_alike_at_nothing": 3,
    "allocation/test_allocation.py::test_budgets_are_met": 2,
    "allocation/test_allocation.py::test_every_allocation_keeps_to_every_budget": 2,
    "allocation/test_budget.py::test_blocks_of_any_map_cost_what_they_should": 3,
    "allocation/test_budget.py::test_nominal_is_counted_is_brute": 2,
    "allocation/test_budget.py::test_stagewise_keeps_to_the_budget": 2,
    "fit/test_distil.py::test_features_are_those_that_layers_read": 2,
    "fit/test_fit.py::test_closed_form_is_least_squares": 3,
    "fit/test_fit.py::test_what_one_student_asked_for_serves_the_next": 3,
    "fit/test_grouped.py::test_a_fit_comes_closer_to_the_targets": 2,
    "fit/test_sequential.py::test_a_weight_is_so_many_copies_of_a_domain": 2,
    "merging/test_own_heads.py::test_where_there_is_nothing_to_tell_apart": 2,
    "merging/test_passes.py::test_processes_agree_on_how_often_they_look": 2,
    "methods/test_adamerging.py::test_processes_learn_what_one_learns": 2,
    "methods/test_adamerging.py::test_the_gradient_is_that_of_finite_differences": 2,
    "methods/test_adamerging.py::test_the_objective_is_what_the_network_itself_predicts": 3,
    "methods/test_aligned.py::test_permuted_copies_of_structured_networks": 2,
    "methods/test_checks.py::test_students_are_no_wider_than_was_told_before_units_were_matched": 2,
    "methods/test_checks.py::test_the_number_of_pictures_that_would_be_enough_is_enough": 3,
    "methods/test_concrete.py::test_no_steps_is_task_arithmetic": 2,
    "methods/test_concrete.py::test_the_gradient_of_the_mask_is_that_of_finite_differences": 2,
    "methods/test_depthwise.py::test_nominal_is_counted": 2,
    "methods/test_depthwise.py::test_permuted_copies_merge_to_themselves": 3,
    "methods/test_depthwise.py::test_sources_apart_are_the_sources": 3,
    "methods/test_invariants.py::test_budgets_together_are_budgets_alone": 3,
    "methods/test_invariants.py::test_every_way_to_fit_sequentially_runs": 2,
    "methods/test_invariants.py::test_one_trunk_keeps_unequal_heads_at_every_budget": 4,
    "methods/test_invariants.py::test_permuted_copies_merge_to_themselves": 4,
    "methods/test_invariants.py::test_same_seed_same_student_and_sources_untouched": 2,
    "methods/test_invariants.py::test_sources_apart_keep_their_own_heads": 4,
    "methods/test_invariants.py::test_the_order_of_the_sources_does_not_matter": 2,
    "methods/test_leading.py::test_the_leader_stays_whole": 2,
    "methods/test_mats.py::test_gram_is_regmean": 2,
    "methods/test_mats.py::test_permuted_copies_merge_to_themselves": 3,
    "methods/test_mats.py::test_sources_that_agree_come_back": 4,
    "methods/test_regmean_pp.py::test_sources_that_agree_come_back": 3,
    "methods/test_same_base.py::test_sources_that_agree_come_back": 3,
    "methods/test_smile.py::test_every_kind_of_layer_in_full": 2,
    "methods/test_smile.py::test_in_full_and_sent_to_one_source_it_is_that_source": 2,
    "methods/test_structured_arithmetic.py::test_moments_move_with_their_units": 2,
    "methods/test_structured_arithmetic.py::test_permuted_copies_merge_to_themselves": 6,
    "methods/test_structured_merges.py::test_a_fit_comes_nearer_to_the_sources": 2,
    "methods/test_structured_merges.py::test_nominal_is_counted": 3,
    "methods/test_structured_merges.py::test_permuted_copies_merge_to_themselves": 6,
    "methods/test_structured_merges.py::test_students_are_files": 3,
    "methods/test_structured_merges.py::test_the_start_is_the_mean_of_the_permuted_sources": 2,
    "methods/test_tuned.py::test_it_picks_what_brute_force_picks": 2,
    "methods/test_tuned.py::test_what_is_not_finite_never_wins": 2,
    "methods/test_wemoe.py::test_blocks": 2,
    "methods/test_wemoe.py::test_untrained_it_is_task_arithmetic": 2,
    "methods/test_zipit.py::test_grouped_convolutions_are_products_with_the_matrices": 2,
    "methods/test_zipit.py::test_nothing_within_is_a_permuted_average": 2,
    "methods/test_zipit.py::test_permuted_copies_merge_to_themselves": 4,
    "methods/test_zipit.py::test_structured_networks": 2,
    "methods/test_zipit.py::test_weights_are_products_with_the_matrices": 2,
    "models/test_architectures.py::test_logits_have_one_column_for_each_class": 2,
    "models/test_recognise.py::test_shapes_tell_the_architecture": 2,
    "modules/test_coefficients.py::test_a_fit_learns_what_a_merge_learns": 2,
    "moments/test_correlations.py::test_what_a_moment_holds_beside_its_totals": 3,
    "moments/test_derived.py::test_every_kind_of_network": 3,
    "moments/test_derived.py::test_networks_of_any_structure": 3,
    "moments/test_derived.py::test_values_that_are_changed_in_place": 2,
    "moments/test_fisher.py::test_labels_and_all_classes_against_one_picture_at_a_time": 2,
    "moments/test_statistics.py::test_a_pass_in_pieces_is_a_pass": 2,
    "moments/test_statistics.py::test_statistics_are_second_moments_of_what_sources_read_and_write": 3,
    "runtime/test_memory.py::test_a_fit_that_waits_on_disk_is_the_same_fit": 2,
    "student/test_files.py::test_round_trip": 2,
    "student/test_formats.py::test_every_kind_comes_back_bit_for_bit": 4,
    "student/test_mixture.py::test_from_its_file_alone": 2,
    "student/test_mixture.py::test_sizes_are_what_torch_counts": 3,
    "student/test_other_heads.py::test_students_of_other_heads_load_again": 2,
    "student/test_own_classes.py::test_a_student_of_a_class_is_rebuilt_by_it": 2,
    "symmetry/test_groups.py::test_a_wrong_spec_is_found_and_named": 2,
    "symmetry/test_groups.py::test_any_group_may_be_permuted": 3,
    "symmetry/test_groups.py::test_number_of_groups": 2,
    "symmetry/test_lifted.py::test_a_permuted_copy_gives_the_network_back": 2,
    "symmetry/test_operations.py::test_a_permuted_copy_gives_the_network_back": 2,
    "symmetry/test_structured.py::test_every_group_moves_what_it_should": 3,
    "symmetry/test_structured.py::test_number_of_groups": 2,
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
