"""Every text of featx that advises an option, a command or a parameter is named by a test that follows it."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest
from advising import ADVISES, advising_texts

import featx
from featx.cli import VERBS, _leaves, _parser

TESTS = Path(__file__).parent
PACKAGE = Path(featx.__file__).parent
TEXTS = list(advising_texts(PACKAGE))

ELSEWHERE = {
    "pip install 'featx[ray]'": "test_distributed.py::test_without_ray_the_extra_is_named",
    "options of --ray; add --ray auto": "test_distributed.py::test_options_that_do_not_fit_are_refused",
    "--ray and --": "test_distributed.py::test_options_that_do_not_fit_are_refused",
    "no Ray cluster at": "test_distributed.py::test_an_address_without_a_cluster_is_refused",
    "no column of images among": "test_distributed.py::test_rows_without_images_are_refused",
    "pip install openvino (or torch, timm)": "test_serving.py::"
    "test_without_torch_and_network_the_message_says_what_to_do",
    "writes a model file with its network inside": "test_serving.py::"
    "test_a_file_with_its_network_predicts_where_torch_is_not_installed",
    "(unfreeze='all')": "test_backbones_split.py::"
    "test_where_no_cut_works_training_the_whole_network_is_named",
    "to the networks that are compared": "test_presets.py::test_the_extra_with_more_networks_is_named_once",
    "stay on one side of every split": "test_check.py::test_fixes_are_obeyed_by_fix_and_by_fit",
    "and in the part of these": "test_growth.py::test_a_near_copy_joins_the_part_of_its_original",
    "give the model file as the backbone": "test_classifier_finetuning.py::"
    "test_heads_are_searched_on_it_again_and_it_is_fine_tuned_again",
    "as long as the features of {} images (--budget": "test_presets.py::"
    "test_quick_searches_two_layers_and_three_heads",
    "decisions (--decide)": "test_decision.py::test_the_command_line_takes_and_shows_decisions",
    "on both parts says more": "test_unlike.py::"
    "test_a_test_part_of_another_kind_warns_and_is_scored_without_copies",
    "is taken from the cached features": "test_extractor.py::"
    "test_auto_precision_takes_the_rows_that_are_there",
    "may all be labels": "test_cases.py::test_what_is_no_table_of_one_label_is_refused_with_the_fix",
    "may all be the paths": "test_images_manifest.py::test_columns_and_the_separator_can_be_given",
    "a HEIC or AVIF photo": "test_cases.py::test_heic_photos_are_read_with_the_extra_and_it_is_named_without",
    "is left out (--bands chooses bands)": "test_images_deep.py::test_bands_can_be_chosen_of_any_image",
    "that Pillow does not read": "test_images_deep.py::"
    "test_other_numbers_of_bands_are_read_by_tifffile_or_name_the_extra",
    "are outside its folder": "test_images_manifest.py::"
    "test_a_file_outside_the_folder_needs_a_root_or_to_be_allowed",
    "featx learns one label per image. Write": "test_cases.py::"
    "test_what_is_no_table_of_one_label_is_refused_with_the_fix",
    "a workbook needs openpyxl": "test_images_manifest.py::test_a_workbook_without_openpyxl_names_the_fix",
    "scaled by the full range of its type": "test_images_deep.py::"
    "test_the_range_of_a_set_is_part_of_its_features",
    "so new features are not stored": "test_stores_readonly.py::"
    "test_new_images_are_computed_and_kept_in_memory_with_one_warning",
    "Everything committed before stays": "faults/test_fault_store.py::"
    "test_row_21_a_full_disk_keeps_what_is_committed_and_the_next_run_goes_on",
    "--scratch needs the labelled training images": "test_report.py::"
    "test_report_trains_a_network_from_scratch_if_it_is_asked_to",
    "choose a narrower representation": "test_solvers_streamed.py::"
    "test_little_memory_takes_more_passes_and_changes_no_score",
}
"""Fragment of a text, and the test in another file that follows its advice."""

NO_ADVICE = {
    "of a view policy is not one of": "a value, not an option",
    "<svg role": "HTML",
    "unrecognized arguments:": "a pattern",
    "has no formula that a graph could have": "all heads have one; for heads that will be added",
    "the graph's probabilities differ": "a bug of featx, which no input provokes",
    "a Git LFS pointer": "a command of another program",
    "has no forward_intermediates": "a command of another program",
    "reinstall it: pip install": "a command of another program",
    "whose key has the same beginning": "two keys whose first 16 hexadecimal digits agree",
    "decoder {} is not installed": "a command of another program",
    "{} size={}": "no text for people",
}
"""Fragment of a text that no test can follow, and why."""


def strings_of_the_tests() -> list[str]:
    """Strings of the remedy tests; patterns lose their backslashes."""
    found = set()
    for path in sorted(TESTS.glob("test_remedies*.py")):
        if path.name == Path(__file__).name:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(re.sub(r"\\(?=\W)", "", node.value))
    return sorted(found)


def quotes(text: str) -> set[str]:
    """What a test must quote of a text: an option or a command with the word before or after it."""
    found = set()
    for match in ADVISES.finditer(text):
        word = re.compile(r"\S*$").search(text[: match.start()])
        start = match.start() - len(word[0]) if word else match.start()
        end = match.end() + len(re.match(r"\S*", text[match.end() :])[0])  # type: ignore[index]
        before = re.search(r"\S+\s+$", text[:start])
        after = re.match(r"\s+\S+", text[end:])
        wide = (start - len(before[0]) if before else start, end + len(after[0]) if after else end)
        for first, last in ((wide[0], end), (start, wide[1])):
            part = text[first:last].strip(" .,;:'\"()`")
            if len(part) > 8 and "{" not in part:
                found.add(part)
    return found or {piece.strip(" .,;:'") for piece in text.split("{}") if len(piece) > 16}


def test_each_advice_is_followed_by_a_test() -> None:
    said = strings_of_the_tests()
    missing = [
        f"{place}: {text}\n    quote one of {sorted(quotes(text))}"
        for place, text in TEXTS
        if not any(part in text for part in (*ELSEWHERE, *NO_ADVICE))
        and not any(part in one for part in quotes(text) for one in said)
    ]
    assert not missing, "a remedy test must quote and follow:\n" + "\n".join(missing)


def test_the_tests_and_texts_that_are_named_exist() -> None:
    for name in ELSEWHERE.values():
        file, _, function = name.partition("::")
        assert f"def {function}(" in (TESTS / file).read_text("utf-8"), name
    for fragment in (*ELSEWHERE, *NO_ADVICE):
        assert any(fragment in text for _, text in TEXTS), f"no text has {fragment!r}"


def options() -> set[str]:
    found = set()
    for verb in VERBS:
        for leaf in _leaves(_parser([verb])):
            for inner in _leaves(leaf):
                found |= {option for action in inner._actions for option in action.option_strings}
    return found


def test_every_option_that_a_text_names_exists() -> None:
    known = options() | {"--force-reinstall", "--line"}  # of pip, and of CSS
    unknown = {
        (place, option)
        for place, text in TEXTS
        for option in re.findall(r"--[a-z][a-z-]+", text)
        if option not in known
    }
    assert not unknown


def test_every_extra_that_a_text_names_exists() -> None:
    extras = set(importlib.metadata.metadata("featx").get_all("Provides-Extra") or ())
    named = {name for _, text in TEXTS for name in re.findall(r"featx\[(\w+)\]", text)}
    assert named <= extras


@pytest.mark.parametrize("text", ["try --thing", "`featx fit` does it", "pip install x", "pass cut='last'"])
def test_the_search_for_advice_finds_it(text: str) -> None:
    assert ADVISES.search(text)
