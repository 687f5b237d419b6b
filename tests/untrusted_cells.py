"""Cells of the matrix kind x modality x entry point that have no case in tests/strangers, and why.

``CELLS`` names the test that covers a cell: that of a modality, or of the part that modalities share. ``NOWHERE`` says
where a kind cannot enter. ``PROPERTIES`` names for each kind a test that draws its inputs by a fixed seed.
"""

from __future__ import annotations

from collections.abc import Iterable

from .strangers.cases import ENTRY_POINTS, KINDS, MODALITIES

Cell = tuple[str, str, str]
"""Kind, modality and entry point."""
Reason = tuple[frozenset[str], frozenset[str], frozenset[str], str]
"""Kinds, modalities and entry points, of all of which it is true, and why."""

ALL = " ".join(MODALITIES)
HERE = "tests/test_untrusted.py::"

# --- cells that a test covers ----------------------------------------------------------------------------------------

_BY_KIND: dict[str, list[tuple[str, str, str]]] = {
    "numbers": [
        ("core vlm diffusion", "data", "tests/test_tables.py::test_a_damaged_file_is_read_or_refused_in_a_line"),
        ("core vlm", "picture", HERE + "test_pictures_are_numbers_between_0_and_1_or_no_pictures"),
        ("core", "model", HERE + "test_one_number_that_is_not_finite_is_found_in_any_state"),
        ("vlm vla diffusion", "model", HERE + "test_a_policy_of_weights_that_are_not_finite_acts_for_nobody"),
        ("vlm", "tool", HERE + "test_whatever_a_tool_returns_the_policy_can_read"),
        ("vlm", "server", HERE + "test_a_server_that_tells_anything_ends_in_one_line_or_in_finite_rollouts"),
        ("vla", "environment", HERE + "test_an_environment_that_says_anything_spoils_its_own_episodes_alone"),
        ("vla", "policy update", "tests/test_robot_edges.py::test_a_policy_that_answers_nan_at_once"),
        (ALL, "evaluation", HERE + "test_outcomes_that_are_no_numbers_are_left_out_and_counted"),
        ("vlm vla diffusion", "report", HERE + "test_outcomes_that_are_no_numbers_are_left_out_and_counted"),
        ("vlm vla diffusion", "checkpoint", HERE + "test_one_number_that_is_not_finite_is_found_in_any_state"),
    ],
    "policy errors": [
        ("core vlm", "update", HERE + "test_no_number_in_rollouts_makes_weights_that_are_not_finite"),
        ("vla", "update evaluation", "tests/test_robot_edges.py::test_a_policy_that_answers_nan_at_once"),
        ("diffusion", "policy update", HERE + "test_a_policy_of_weights_that_are_not_finite_acts_for_nobody"),
        (
            "core vlm diffusion",
            "evaluation",
            "tests/test_scoring.py::test_who_broke_the_reward_scores_its_minimum_and_the_others_what_they_score_together",
        ),
        ("core vla diffusion", "report", "tests/test_gates.py::test_a_kind_of_faults_is_told_by_its_rate"),
        ("vlm", "sandbox", HERE + "test_any_bytes_as_a_program_end_in_a_result"),
        ("vla", "reward", "tests/test_robot_edges.py::test_a_fault_is_worth_nothing_in_hindsight"),
    ],
    "text to ids": [
        (
            "vlm",
            "server",
            "tests/test_vlm_server.py::test_questions_are_sent_without_control_tokens_and_begun_answers_go_on",
        ),
    ],
    "two doors": [
        ("vla", "data", "tests/test_lerobot_own.py::test_both_readers_give_the_same"),
        ("diffusion", "picture", HERE + "test_one_picture_is_the_same_through_every_door"),
    ],
    "bytes": [
        ("core vlm diffusion", "picture", "tests/test_images.py::test_a_limit_of_pixels_holds_at_every_entrance"),
        ("core vlm", "reward", "tests/test_rewards_hub.py::test_scores_in_pieces_are_those_of_all_at_once"),
        (
            "core vlm",
            "report",
            "tests/test_report.py::test_large_pictures_go_into_the_page_smaller_and_stay_as_they_are",
        ),
        ("vla", "report", "tests/test_report.py::test_a_large_film_stays_a_film"),
        (
            "core",
            "evaluation",
            "tests/test_gates.py::test_many_probes_are_looked_at_a_few_at_a_time_in_their_order",
        ),
        (
            "vlm",
            "evaluation",
            "tests/test_vlm_evaluation.py::test_outcomes_are_those_of_the_verifier_in_any_number_of_chunks",
        ),
        ("vlm", "sandbox", "tests/test_sandbox.py::test_printing_without_end_fills_a_limited_file_only"),
        (
            "vla",
            "environment",
            "tests/test_env_checker.py::test_at_most_so_many_instances_are_alive_and_lanes_change_nothing",
        ),
    ],
    "data files": [
        (
            "vlm vla diffusion",
            "checkpoint",
            HERE + "test_settings_that_were_cut_off_or_altered_are_an_object_or_one_line",
        ),
    ],
    "cannot learn": [
        (ALL, "update reward", HERE + "test_groups_without_spread_teach_nothing"),
        ("vla", "model", "tests/test_vla_lora.py::test_only_adapters_learn"),
    ],
    "half finished": [
        ("vlm", "update", "tests/test_vlm_recipes.py::test_a_run_resumes_as_if_nothing_had_happened"),
        ("vla", "update", "tests/test_recipes.py::test_a_killed_run_ends_as_if_nothing_had_happened"),
        ("diffusion", "update", "tests/test_diffusion_recipes.py::test_prdp_resumes_as_if_nothing_had_happened"),
        ("vla", "model", "tests/test_vla_lora.py::test_adapters_are_saved_by_themselves"),
        ("diffusion", "model", "tests/test_diffusion_lora.py::test_a_saved_lora_draws_the_same_in_a_fresh_pipeline"),
    ],
    "drift": [
        (
            "vlm",
            "update",
            "tests/test_vlm_conversation.py::test_what_was_sampled_is_what_is_evaluated_and_what_a_plain_pass_gives",
        ),
        ("vla", "policy update", "tests/test_vla_policy.py::test_the_ratio_is_one_before_the_first_update"),
        ("diffusion", "policy", "tests/test_diffusion_policy.py::test_recorded_log_probs_are_found_again"),
        (
            "diffusion",
            "update",
            "tests/test_diffusion_policy.py::test_own_rollouts_need_no_second_forward_and_give_the_same_gradient",
        ),
    ],
    "first hour": [
        ("vla", "data", "tests/test_recipes.py::test_debug_presets_run_two_iterations"),
        ("core", "reward", "tests/test_house.py::test_the_rewards_in_the_readme_run"),
        ("vlm", "reward", "tests/test_trainer.py::test_grpo_with_an_own_reward_takes_at_most_ten_lines"),
        ("vlm", "model", "tests/test_vlm_recipes.py::test_a_model_of_ones_own_learns_and_its_adapters_are_kept"),
        ("diffusion", "model", "tests/test_diffusion_recipes.py::test_debug_presets_run_two_iterations"),
    ],
    "report": [
        ("vlm vla", "report", HERE + "test_names_of_tasks_and_metrics_are_words_in_report_and_card"),
        ("diffusion", "report", "tests/test_report.py::test_words_fit_pictures_as_well_as_robots"),
        (
            "core vlm vla",
            "evaluation",
            "tests/test_report.py::test_evaluations_that_hold_nothing_do_not_stop_the_report",
        ),
    ],
    "processes": [
        ("vlm", "update", "tests/test_vlm_distributed.py::test_an_update_of_answers_by_two_processes_is_that_of_one"),
        (
            "diffusion",
            "update",
            "tests/test_diffusion_distributed.py::test_an_update_of_pictures_by_two_processes_is_that_of_one",
        ),
        ("vla", "update", "tests/test_distributed.py::test_an_update_by_two_processes_is_that_of_one"),
        ("core", "checkpoint", "tests/test_distributed.py::test_a_run_by_two_processes_is_that_of_one"),
    ],
}
CELLS: dict[Cell, str] = {
    (kind, modality, entry): test
    for kind, rows in _BY_KIND.items()
    for modalities, entries, test in rows
    for modality in modalities.split()
    for entry in entries.split()
}

# --- cells where nothing can enter -----------------------------------------------------------------------------------

_HOMES: dict[str, tuple[str, str]] = {
    "numbers": (
        "options data model picture policy tool reward environment server update evaluation checkpoint report",
        "a prompt is text, and programs are judged by what they print and return",
    ),
    "policy errors": (
        "policy tool sandbox reward environment update evaluation report",
        "no policy writes a person's options, data, models and prompts, nor what a server or a disk holds",
    ),
    "text to ids": ("prompt policy tool reward server", "text becomes ids where something is said to a model alone"),
    "two doors": ("data picture reward evaluation", "there is one way in"),
    "trl rewards": ("reward", "they are rewards"),
    "graders": ("reward", "graders are rewards, those of evaluations included"),
    "sandbox": ("sandbox", "programs of others are run in the sandbox alone"),
    "bytes": (
        "data model picture tool sandbox reward environment evaluation report",
        "it holds one batch at a time, or texts of a limited length",
    ),
    "data files": ("options data model checkpoint report", "it reads no file"),
    "cannot learn": (
        "data model policy reward environment update",
        "whether there is something to learn is seen at what acts, judges and learns; options are numbers out of range",
    ),
    "half finished": (
        "options model policy environment update checkpoint",
        "nothing of a run is kept there that an early end could lose; an evaluation comes after the policy was saved",
    ),
    "schedulers": ("options model", "a pipeline and its scheduler come as the model and its options"),
    "drift": ("data policy tool server update", "nothing is sampled or learned there"),
    "restore": ("environment", "nothing else is put back into an earlier state"),
    "environments": ("environment policy reward", "environments meet policies and what judges their episodes alone"),
    "robot data": ("options data policy reward report", "recordings are read as data, and what is learned of them"),
    "first hour": (
        "options data model reward checkpoint report",
        "nobody new meets it by itself: it is behind options, data, models, rewards, runs and reports",
    ),
    "report": ("evaluation report", "the report is made of evaluations and records"),
    "processes": ("update evaluation checkpoint", "every process does the same there, by the same keys"),
}
"""Kind -> entry points that it can take, and why no other."""

_ABSENT: list[tuple[str, str, str]] = [
    (
        "core",
        "prompt policy tool sandbox environment server",
        "what modalities share asks nothing, acts nowhere and runs no program: a modality's own does",
    ),
    ("vla", "tool sandbox server", "robots call no tools, write no programs and are sampled by no server"),
    ("vla", "picture", "pictures of robots come from cameras and recordings: environment and data"),
    (
        "diffusion",
        "tool sandbox environment server",
        "what draws calls no tools, acts nowhere and samples by itself",
    ),
    ("vlm", "environment", "what answers a turn enters as a reply of tools does"),
]
"""Modality -> entry points that it does not have."""

_FOREIGN: list[tuple[str, str, str]] = [
    ("schedulers", "core vlm vla", "pipelines and their schedulers draw pictures alone"),
    ("restore environments", "core vlm diffusion", "simulators are of robots"),
    ("robot data", "core vlm diffusion", "recordings of robots are read by robots alone"),
    ("sandbox", "core vla diffusion", "programs are answers of language models"),
    ("trl rewards", "vla", "functions written for TRL read texts and pictures"),
    (
        "graders",
        "core vla",
        "verifiers read texts; robots succeed by their simulator, which audits critics",
    ),
]
"""Kinds that a modality does not have."""

_SINGLE: list[tuple[str, str, str, str]] = [
    ("text to ids", "core", "reward", "models that judge are asked through one door, which is tried with vlm"),
    ("text to ids", "vla", "policy", "robots write actions"),
    ("text to ids", "vla", "reward", "models that tell progress are asked as judges are, which is tried with vlm"),
    (
        "text to ids",
        "diffusion",
        "prompt policy reward",
        "pipelines and scorers read captions as their authors' own calls do: no turn is there to be broken",
    ),
    ("two doors", "core", "data evaluation", "rows are read and policies evaluated by a modality"),
    ("two doors", "vla", "reward evaluation", "success has one door: the environment's own"),
    ("two doors", "diffusion", "evaluation", "what is drawn is evaluated by the judge alone"),
    ("bytes", "core vlm vla", "model", "weights take what they take, whoever loads them"),
    ("bytes", "core", "data", "rows are read by a modality"),
    ("bytes", "vla", "data", "an episode is read when it is asked for, one at a time"),
    ("bytes", "vla", "evaluation", "as many episodes as an option says, and frames of those that are filmed"),
    ("data files", "vla diffusion", "options", "config files are read by one function for all, tried with core"),
    ("data files", "vlm vla diffusion", "report", "a run's records are read by one function for all, tried with core"),
    ("cannot learn", "core", "data model", "policies and what they learn from are a modality's"),
    ("cannot learn", "vlm diffusion", "data", "rows that teach nothing have no spread, which is seen at the update"),
    ("cannot learn", "vlm", "policy", "a temperature that leaves nothing to chance is a number out of range"),
    ("cannot learn", "diffusion", "policy", "a chain without noise is refused with its scheduler"),
    ("half finished", "core", "options model", "grids, films and adapters are a modality's"),
    ("half finished", "vlm vla", "options", "only grids have an option that can end a run at its end"),
    ("half finished", "vlm diffusion", "policy", "films alone need the policy once more when all is done"),
    ("drift", "core", "data", "rows are read by a modality"),
    ("first hour", "core", "data", "rows are read by a modality"),
    ("drift", "vla diffusion", "data", "only positions of long texts change how a model reads"),
    ("first hour", "vlm vla diffusion", "checkpoint", "runs are resumed by one command for all, tried with core"),
    ("first hour", "diffusion", "reward", "own rewards are given in one way for all"),
    ("processes", "vlm vla diffusion", "evaluation checkpoint", "the loop decides and saves for all, tried with core"),
]


def _of(names: str, known: Iterable[str] = (*MODALITIES, *ENTRY_POINTS)) -> frozenset[str]:
    """Those that a text names; kinds may be of several words."""
    return frozenset(name for name in known if f" {name} " in f" {names} ")


NOWHERE: list[Reason] = [
    *(
        (frozenset({kind}), frozenset(MODALITIES), frozenset(ENTRY_POINTS) - frozenset(entries.split()), why)
        for kind, (entries, why) in _HOMES.items()
    ),
    *((frozenset(KINDS), frozenset({modality}), _of(entries), why) for modality, entries, why in _ABSENT),
    *((_of(kinds, KINDS), _of(modalities), frozenset(ENTRY_POINTS), why) for kinds, modalities, why in _FOREIGN),
    *((frozenset({kind}), _of(modalities), _of(entries), why) for kind, modalities, entries, why in _SINGLE),
]

# --- a property of each kind -----------------------------------------------------------------------------------------

PROPERTIES = {
    "numbers": HERE + "test_no_number_in_rollouts_makes_weights_that_are_not_finite",
    "policy errors": HERE + "test_whatever_a_policy_writes_as_a_call_it_is_told_something_that_it_can_read",
    "text to ids": HERE + "test_instructions_and_judged_texts_spell_no_control_token",
    "two doors": HERE + "test_one_picture_is_the_same_through_every_door",
    "trl rewards": HERE + "test_scores_are_the_same_in_every_container",
    "graders": "tests/test_rewards_verifiers.py::test_any_text_has_a_score_in_range_and_the_same_one_again",
    "sandbox": HERE + "test_any_bytes_as_a_program_end_in_a_result",
    "bytes": HERE + "test_a_text_within_so_many_tokens_has_no_more_bytes",
    "data files": HERE + "test_settings_that_were_cut_off_or_altered_are_an_object_or_one_line",
    "cannot learn": HERE + "test_groups_without_spread_teach_nothing",
    "half finished": "tests/test_checkpoint.py::test_kills_at_random_moments_leave_a_whole_checkpoint",
    "schedulers": HERE + "test_any_number_of_steps_makes_levels_that_lose_noise_or_one_line",
    "drift": HERE + "test_a_server_that_tells_anything_ends_in_one_line_or_in_finite_rollouts",
    "restore": "tests/test_envs_snapshots.py::test_random_graphs_of_objects_come_back_whole",
    "environments": HERE + "test_an_environment_that_says_anything_spoils_its_own_episodes_alone",
    "robot data": "tests/test_lerobot_fuzz.py::test_strange_values_in_what_a_dataset_says_of_itself",
    "first hour": HERE + "test_a_name_with_one_slip_is_told_with_the_right_one",
    "report": HERE + "test_names_of_tasks_and_metrics_are_words_in_report_and_card",
    "processes": HERE + "test_one_weight_that_differs_is_another_checksum",
}
