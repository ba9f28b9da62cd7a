"""Which tests are slow, and eight fake CPU devices for tests of meshes; programs that tests start have one device."""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

os.environ['JAX_PLATFORMS'] = 'cpu'  # of those programs: libtpu, which is here to compile with, would look for a TPU
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
collect_ignore = ['benchmarks']  # programs, some of another environment
# The first start first, so that no worker ends idle.
LONGEST = ('test_loop.py', 'test_example.py', 'test_smollm2.py', 'test_golden.py', 'test_meshes.py', 'test_resume.py',
           'test_lora.py', 'test_aot.py', 'test_endpoint.py', 'test_personas.py')  # fmt: skip
# `make test` leaves these out and `make test-all` runs them: campaigns of kills, several processes, compilations for
# TPUs, labels of real data, the example, adapters, and what faster tests cover too (test_golden.py runs a loop, and one
# mesh has all axes).
# An entry is a file, or a test with or without its parameters. What has the marker real_model is slow as well.
SLOW = (
    'test_aot.py',
    'test_beam.py::test_a_killed_pipeline_goes_on_after_the_parts_that_are_there',
    'test_check.py::test_faulty_teachers[slow]',
    'test_crew.py::test_two_processes_report_an_error_once',
    'test_crew.py::test_two_processes_sample_as_one',
    'test_endpoint.py',
    'test_example.py',
    'test_configs.py::test_every_smoke_variant_takes_a_step',
    'test_feedback.py::test_a_run_trains_and_is_evaluated',
    'test_feedback.py::test_a_shortened_context_starts_at_the_request_on_both_sides',
    'test_feedback.py::test_hindsight_in_rows_equals_plain_sequences',
    'test_feedback.py::test_one_sided_kto_in_rows_equals_plain_sequences',
    'test_flops.py::test_a_gradient_is_what_xla_counts',
    'test_follow_ups.py::test_a_local_model_gives_the_posterior_of_its_likelihoods',
    'test_follow_ups.py::test_developer_labels_of_wildchat',
    'test_hub.py::test_killed_download_resumes_and_is_not_mistaken_for_a_whole_one',
    'test_import.py::test_exported_rewards_and_tokens_are_those_of_transformers',
    'test_import.py::test_hostile_templates_end_in_time',
    'test_ingest.py::test_killed_again_and_again_it_ends_in_the_same_bytes',
    'test_ingest.py::test_workers_end_with_the_stage',
    'test_loop.py',
    'test_lora.py',
    'test_meshes.py::test_at_step_0_the_loss_is_log_2[data]',
    'test_meshes.py::test_at_step_0_the_loss_is_log_2[fsdp]',
    'test_meshes.py::test_at_step_0_the_loss_is_log_2[one]',
    'test_meshes.py::test_gradients_and_updates_are_those_of_one_device[data]',
    'test_meshes.py::test_gradients_and_updates_are_those_of_one_device[fsdp]',
    'test_meshes.py::test_unequal_pair_counts_give_the_unpacked_gradient',
    'test_online.py::test_a_round_is_answered_by_the_weights_that_the_round_before_has_reached',
    'test_online.py::test_a_run_killed_in_any_phase_ends_with_the_same_parameters',
    'test_online.py::test_a_run_that_is_asked_to_stop_ends_with_the_same_parameters',
    'test_online.py::test_a_synced_reference_is_the_policy_at_the_start_of_a_round',
    'test_online.py::test_one_round_of_all_requests_is_the_offline_path',
    'test_online.py::test_two_processes_make_the_same_pairs_and_parameters',
    'test_online_loop.py',
    'test_patterns.py::test_time_grows_with_the_text_and_no_faster',
    'test_personas.py::test_evaluation_agrees_with_scoring_each_conversation_alone',
    'test_personas.py::test_ref_sees_persona_changes_the_reference_alone',
    'test_personas.py::test_rm_sees_persona_changes_what_the_reward_model_reads',
    'test_profile.py',
    'test_remat.py::test_gradients_of_gemma_on_a_mesh_are_those_of_one_device',
    'test_resume.py::test_killed_ten_times',
    'test_resume.py::test_two_processes',
    'test_resume.py::test_two_processes_stop_together',
    'test_rewards.py::test_an_objective_that_ignores_margins_says_so',
    'test_rewards.py::test_margins_and_ties_reach_the_loss_of_packed_rows',
    'test_rewards.py::test_scores_are_those_of_plain_sequences',
    'test_rewrites.py::test_killed_it_ends_in_the_same_bytes',
    'test_sampler.py::test_log_probabilities_are_those_of_training',
    'test_shards.py::test_killed_stage_leaves_no_output',
    'test_warm_start.py::test_a_finished_warm_start_is_not_trained_again_and_its_change_reaches_dpo',
    'test_warm_start.py::test_dpo_starts_from_the_warm_start_and_compares_with_it',
    'test_warm_start.py::test_the_warm_start_learns_from_rewrites_alone',
)


def pytest_configure(config):
    """Have processes share what JAX compiles: tests start hundreds of them, which run the same few programs."""
    _check_names()
    if hasattr(config, 'workerinput'):  # of pytest-xdist: it inherits what is set here
        return
    folder = tempfile.mkdtemp(prefix='compiled_')
    config.add_cleanup(lambda: shutil.rmtree(folder))
    os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
    os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by marker
def pytest_collection_modifyitems(items):
    for item in items:
        file, test = item.path.name, item.name
        names = {file, f'{file}::{test}', f'{file}::{test.partition("[")[0]}'}
        if names.intersection(SLOW) or item.get_closest_marker('real_model'):
            item.add_marker('slow')
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def _check_names():
    """Raises UsageError for a name in SLOW or LONGEST that no file or test has: it was renamed."""
    for entry in (*SLOW, *LONGEST):
        file, _, test = entry.partition('[')[0].partition('::')
        path = Path(__file__).with_name(file)
        if not path.exists() or f'def {test}' not in path.read_text():
            raise pytest.UsageError(f'tests/conftest.py lists {entry}, which does not exist: give its new name')
