from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ray.specs.data import GlyphsAndTextures, ImageFolder
from dp4tl_ray.specs.load import NAMES, StudyError, load_study
from dp4tl_ray.specs.pretraining import Supervised
from dp4tl_ray.specs.schema import json_schema
from dp4tl_ray.specs.self_supervised import SimCLR
from dp4tl_ray.specs.training import Budget
from dp4tl_ray.specs.unit_methods import LabelMapping

Write = Callable[[str | bytes], Path]

STUDY = """\
name: s
source: glyphs_and_textures
surrogate: {objective: supervised, budget: {epochs: 3}}
targets: [held_out_letters]
methods: [random_classes, label_mapping]
pruning_ratios: [0.0, 0.5]
pretraining:
- objective: supervised
  budget: {epochs: 3}
seeds: [0, 1]
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "s.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path: Path, *overrides: str) -> list[str]:
    """The lines of the message, without the folder."""
    with pytest.raises(StudyError) as caught:
        load_study(path, overrides)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


def changed(old: str, new: str) -> str:
    assert STUDY.count(old) == 1, old
    return STUDY.replace(old, new)


def test_a_good_study_is_read(write: Write) -> None:
    study = load_study(write(STUDY))
    assert study.methods[1] == LabelMapping()
    assert study.pruning_ratios == (0.0, 0.5)


BLURRED = (
    "{objective: pretrained, network: {arch: resnet18, blurpool: true}, "
    "weights: torchvision:V1, outputs: source}"
)
MISTAKES = [
    # (old, new, position, field path, fragments of the message, what is underlined)
    ("epochs: 3}\nseeds", "epohcs: 3}\nseeds", "9:12", "pretraining[0].budget.epohcs",
     ["unknown field 'epohcs'", "did you mean 'epochs'? allowed: epochs, examples_seen"], "epohcs"),
    ("name: s", "nmae: s", "1:1", "nmae", ["unknown field", "did you mean 'name'?"], "nmae"),
    ("seeds:", "sEEds:", "10:1", "sEEds", ["unknown field 'sEEds'", "allowed: adversarial,"],
     "sEEds"),
    ("0.5]", "1.0]", "6:23", "pruning_ratios[1]", ["must be less than 1, got 1.0"], "1.0"),
    ("0.5]", "-0.5]", "6:23", "pruning_ratios[1]", ["must be at least 0, got -0.5"], "-0.5"),
    ("0.5]", "'0.5']", "6:23", "pruning_ratios[1]",
     ["must be a number, got '0.5' (a string)"], "'0.5'"),
    ("0.5]", "no]", "6:23", "pruning_ratios[1]", ["must be a number, got 'no' (a string)"], "no"),
    ("0.5]", "1_0]", "6:23", "pruning_ratios[1]", ["got '1_0' (a string)"], "1_0"),
    ("0.5]", ".inf]", "6:23", "pruning_ratios[1]", ["must be a finite number, got inf"], ".inf"),
    ("0.5]", "1e-400]", "6:23", "pruning_ratios[1]", ["repeats an earlier entry"], "1e-400"),
    ("[0.0, 0.5]", "[]", "6:17", "pruning_ratios",
     ["must be a list with at least one entry, got an empty list"], "[]"),
    ("[0.0, 0.5]", "0.5", "6:17", "pruning_ratios",
     ["must be a list with at least one entry, got 0.5"], "0.5"),
    ("[0.0, 0.5]", "", "6:1", "pruning_ratios", ["must be a list", "got null"],
     "pruning_ratios"),
    ("[0, 1]", "[0, '3']", "10:12", "seeds[1]",
     ["must be a whole number, got '3' (a string)"], "'3'"),
    ("[0, 1]", "[0, 1.5]", "10:12", "seeds[1]", ["must be a whole number, got 1.5"], "1.5"),
    ("[0, 1]", "[0, true]", "10:12", "seeds[1]", ["must be a whole number, got true"], "true"),
    ("[0, 1]", "[0, 2147483648]", "10:12", "seeds[1]", ["must be less than 2147483648"],
     "2147483648"),
    ("[0, 1]", "[1, 1.0]", "10:12", "seeds[1]", ["repeats an earlier entry"], "1.0"),
    ("[held_out_letters]", "[held_out_letters, {dataset: held_out_letters}]", "4:29", "targets[1]",
     ["repeats an earlier entry"], "{dataset: held_out_letters}"),
    ("glyphs_and_textures", "glyphs_and_texture", "2:9", "source",
     ["'glyphs_and_texture' is not known; did you mean 'glyphs_and_textures'?",
      "allowed: cifar10, ", "glyphs_and_textures, huggingface, "], "glyphs_and_texture"),
    ("glyphs_and_textures", "{dataset: image_folder}", "2:9", "source.path", ["is required"],
     "{dataset: image_folder}"),
    ("glyphs_and_textures", "{path: x}", "2:9", "source.dataset",
     ["is required; allowed: cifar10, ", "glyphs_and_textures, huggingface, "], "{path: x}"),
    ("glyphs_and_textures", "{cifar10: {path: x}}", "2:9", "source.dataset",
     ["is required; write {dataset: cifar10, ...}"], "{cifar10: {path: x}}"),
    ("glyphs_and_textures", "3", "2:9", "source",
     ["must be a name or a record, got 3; allowed: cifar10, "], "3"),
    ("glyphs_and_textures", "{dataset: glyphs_and_textures, image_size: true}", "2:52",
     "source.image_size", ["must be a whole number, got true"], "true"),
    ("glyphs_and_textures", "{dataset: glyphs_and_textures, image_size: 24}", "2:52",
     "source.image_size", ["must be 16 or 32, got 24"], "24"),
    (", label_mapping]", ", {method: label_maping}]", "5:36", "methods[1].method",
     ["'label_maping' is not known; did you mean 'label_mapping'?"], "label_maping"),
    (", label_mapping]", ", {metod: el2n}]", "5:28", "methods[1].metod",
     ["unknown field 'metod'; did you mean 'method'?"], "metod"),
    (", label_mapping]", ", {method: label_mapping, keep: low}]", "5:57", "methods[1].keep",
     ["'low' is not known; did you mean 'lowest'? allowed: highest, lowest"], "low"),
    ("budget: {epochs: 3}}", "network: resnet}", "3:45", "surrogate.network",
     ["'resnet' is not known; did you mean 'resnet9'? allowed: resnet101"], "resnet"),
    ("budget: {epochs: 3}}", "budget: {epochs: 0}}", "3:53", "surrogate.budget.epochs",
     ["must be greater than 0, got 0"], "0"),
    ("budget: {epochs: 3}}", "budget: {}}", "3:44", "surrogate.budget",
     ["give either epochs or examples_seen"], "{}"),
    ("{objective: supervised, budget: {epochs: 3}}", "3", "3:12", "surrogate",
     ["must be a name or a record, got 3; allowed: byol, dp4tl_rn101_16"], "3"),
    ("objective: supervised, budget: {epochs: 3}}", "objective: moco_v1}", "3:24",
     "surrogate.objective", ["'moco_v1' is not known; did you mean 'moco_v"], "moco_v1"),
    ("objective: supervised, budget: {epochs: 3}}", "objective: simclr}", "5:27", "methods[1]",
     ["label_mapping: reads the source's labels through the surrogate, and simclr learns none",
      "feature_mapping"], "label_mapping"),
    ("objective: supervised, budget: {epochs: 3}}",
     "objective: pretrained, network: resnet18, weights: w.pt}", "5:27", "methods[1]",
     ["gives with outputs: source"], "label_mapping"),
    (", label_mapping]", ", {method: random_examples, surrogate: big}]", "5:27", "methods[1]",
     ["random_examples: scores without a surrogate: leave surrogate out"],
     "{method: random_examples, surrogate: big}"),
    ("objective: supervised, budget: {epochs: 3}}",
     "objective: pretrained, network: resnet9, weights: torchvision:V1, outputs: source}",
     "3:12", "surrogate", ["are of torchvision's own networks, such as resnet18"],
     "{objective: pretrained, network: resnet9, weights: torchvision:V1, outputs: source}"),
    ("objective: supervised, budget: {epochs: 3}}", BLURRED[1:], "3:12", "surrogate",
     ["are of torchvision's own networks, such as resnet18"], BLURRED),
    ("objective: supervised, budget: {epochs: 3}}",
     "objective: pretrained, network: {arch: timm, name: a}, weights: timm, outputs: source}",
     "3:12", "surrogate", ["whose name says which, such as resnet18.a1_in1k"],
     "{objective: pretrained, network: {arch: timm, name: a}, weights: timm, outputs: source}"),
    ("seeds: [0, 1]", "surrogates: {a: {objective: simsiam, batch_norm: {group_size: 1}}}",
     "10:13", "surrogates", ["a: batch_size and batch_norm.group_size must be at least 2"],
     "{a: {objective: simsiam, batch_norm: {group_size: 1}}}"),
    (", label_mapping]", ", {method: el2n, surrogate: big}]", "5:27", "methods[1]",
     ["el2n: surrogate 'big' is not known; allowed: none; name one under surrogates"],
     "{method: el2n, surrogate: big}"),
    ("objective: supervised\n  budget: {epochs: 3}\n", "objective: moco_v2\n  batch_size: 64\n",
     "8:3", "pretraining[0]", ["batch_size 64 is one group: halve batch_norm.group_size 64"], "o"),
    ("objective: supervised\n  budget: {epochs: 3}\n", "objective: moco_v2\n  queue_size: 100\n",
     "8:3", "pretraining[0]", ["queue_size 100 does not hold the keys of one batch of 256"], "o"),
    ("objective: supervised\n  budget: {epochs: 3}\n",
     "objective: simclr\n  network: {arch: vit, patch_size: 16, width: 100}\n",
     "8:3", "pretraining[0]", ["num_heads 3 does not divide the width 100"], "o"),
    ("objective: supervised\n  budget: {epochs: 3}\n",
     "objective: simclr\n  augmentation: {blur_sigma: [2, 1]}\n",
     "9:30", "pretraining[0].augmentation.blur_sigma", ["the smaller number comes first"],
     "[2, 1]"),
    ("seeds: [0, 1]", "runtime: {microbatch: 64}\nsurrogates: {s: byol}", "10:10", "runtime",
     ["s: microbatch does not go with surrogates, which compares the whole batch"],
     "{microbatch: 64}"),
    ("{objective: supervised, budget: {epochs: 3}}",
     "{objective: supervised, batch_size: 100}", "3:12", "surrogate",
     ["batch_size 100 is not a multiple of"], "{objective: supervised, batch_size: 100}"),
    ("[held_out_letters]", "[held_out_letters, {dataset: held_out_textures, image_size: 32}]",
     "4:29", "targets[1]", ["has image_size 32, the source 16: they must agree"],
     "{dataset: held_out_textures, image_size: 32}"),
    ("name: s", "name: 2024-01-01", "1:7", "name", ["must match ^[a-z0-9]", "'2024-01-01'"],
     "2024-01-01"),
    (", label_mapping]", ", {method: label_aware_mapping, balanced: yes}]", "5:67",
     "methods[1].balanced", ["must be true or false, got 'yes' (a string)"], "yes"),
    (", label_mapping]", ", {method: label_mapping, select: ccs}]", "5:59", "methods[1].select",
     ["'ccs' is not known; allowed: gumbel, quota, top, whole_units"], "ccs"),
    (", label_mapping]", ", {method: label_mapping, capacity: 2}]", "5:27", "methods[1]",
     ["capacity needs a temperature above 0"], "{method: label_mapping, capacity: 2}"),
    (", label_mapping]", ", {method: random_classes, select: quota}]", "5:27", "methods[1]",
     ["quota needs the mass that a mapping moves"], "{method: random_classes, select: quota}"),
    (", label_mapping]", ", {method: random_classes, within: {method: el2n, select: ccs}}]",
     "5:27", "methods[1]", ["write select outside of it"],
     "{method: random_classes, within: {method: el2n, select: ccs}}"),
    ("[0, 1]", "[0, 1]\ntransfers: [{transfer: linear_probe, solver: adam, l2: [0.1]}]", "11:56",
     "transfers[0].l2", ["solver: adam has no penalty to choose: leave l2 out"], "[0.1]"),
    ("[0, 1]", "[0, 1]\ntransfers: [{transfer: linear_probe, tta: flip, refit_on_val: true}]",
     "11:43", "transfers[0].tta", ["averages validation images, which refit_on_val trains on"],
     "flip"),
    ("[0, 1]", "[0, 1]\ntransfers: [linear_probe, dp4tl_full_finetune]", "11:27", "transfers[1]",
     ["dp4tl_full_finetune: optimizer by_target: the paper's code does not finetune on "
      "held_out_letters; write optimizer: adam or sgd (it knows cifar10, cifar100, dtd,"],
     "dp4tl_full_finetune"),
    ("[0, 1]", "[0, 1]\ntransfers: [{transfer: dp4tl_asis, optimizer: sgd}]", "11:47",
     "transfers[0].optimizer", ["mode: linear_probe is trained by adam"], "sgd"),
    ("[0, 1]", "[0, 1]\nadversarial: [{attack: pgd, eps: 4}]", "11:34", "adversarial[0].eps",
     ["4 is more than the whole range of pixels, [0, 1]; did you mean 4/255?"], "4"),
    ("[0, 1]", "[0, 1]\nadversarial: [{attack: fgsm_rs, eps: 4/256}]", "11:38",
     "adversarial[0].eps", ["must be a number, or one over 255 such as 4/255"], "4/256"),
    ("[0, 1]", "[0, 1]\nadversarial: [{attack: pgd, norm: l2}]", "11:15",
     "adversarial[0].eps", ["norm: l2 needs its own eps, such as 0.5"],
     "{attack: pgd, norm: l2}"),
    ("[0, 1]", "[0, 1]\nadversarial: [{attack: fgsm}]", "11:24", "adversarial[0].attack",
     ["'fgsm' is not known; did you mean 'n_fgsm'? allowed: dp4tl_asis, fgsm_rs"], "fgsm"),
    ("[0, 1]", "[0, 1]\nadversarial: [{attack: free, awp: 0.01}]", "11:35",
     "adversarial[0].awp", ["must be null"], "0.01"),
    ("[0, 1]", "[0, 1]\nrobustness: [{attack: pgd, eps: [1, 2]}]", "11:33", "robustness[0].eps",
     ["2 is more than the whole range of pixels, [0, 1]; did you mean 2/255?"], "[1, 2]"),
    ("[0, 1]", "[0, 1]\nrobustness: [{attack: autoattack, norm: l2}]", "11:14",
     "robustness[0].eps", ["norm: l2 needs its own eps, such as [0.25, 0.5, 1.0]"],
     "{attack: autoattack, norm: l2}"),
    ("[0, 1]", "[0, 1]\nrobustness: [autoatack]", "11:14", "robustness[0]",
     ["'autoatack' is not known; did you mean 'autoattack'? allowed: autoattack, pgd"],
     "autoatack"),
    ("objective: supervised\n  budget: {epochs: 3}\n",
     "objective: supervised\n  adversarial: pgd\n", "8:3", "pretraining[0]",
     ["its adversarial variants are those of the axis adversarial"], "o"),
    ("[0, 1]", "[0, 1]\nruntime: {sharding: fsdp2}\nadversarial: [pgd]", "11:10", "runtime",
     ["sharding fsdp2 does not go with pgd: take ddp"], "{sharding: fsdp2}"),
    ("[0, 1]", "[0, 1]\nruntime: {microbatch: 64}\nadversarial: [dp4tl_asis]", "11:10", "runtime",
     ["microbatch does not go with dp4tl_asis under attack_bn: train"], "{microbatch: 64}"),
    ("[0, 1]", "[0, 1]\nsearch: loseless", "11:9", "search",
     ["'loseless' is not known; did you mean 'lossless'? allowed: grid, lossless"], "loseless"),
    ("name: s\n", "", "1:1", "name", ["is required"], "s"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pruning_ratios=[0.5]", "pruning_ratios: search: lossless compares with the full source"),
        ("pruning_ratios=[0]", "pruning_ratios: search: lossless needs ratios above 0"),
        ("pretraining=[supervised]", "pretraining: search: lossless needs the untrained floor"),
        ("seeds=[0, 1]", "seeds: search: lossless needs at least 3 seeds, got 2"),
    ],
)
def test_a_search_that_cannot_come_to_a_verdict_is_refused(
    write: Write, setting: str, message: str
) -> None:
    text = changed("seeds: [0, 1]", "- none\nseeds: [0, 1, 2]\nsearch: lossless")
    path = write(text)
    assert load_study(path).search == "lossless"
    assert refusal(path, setting)[0].startswith(f"--set {setting}: {message}")


@pytest.mark.parametrize(
    ("old", "new", "position", "field", "fragments", "underlined"),
    MISTAKES,
    ids=[f"{field}={new[:20]}" for _, new, _, field, _, _ in MISTAKES],
)
def test_a_mistake_is_answered_with_place_field_and_what_is_allowed(
    write: Write,
    old: str,
    new: str,
    position: str,
    field: str,
    fragments: list[str],
    underlined: str,
) -> None:
    text = changed(old, new)
    lines = refusal(write(text))
    index = next(i for i, line in enumerate(lines) if f": {field}: " in line)
    head, source, caret = lines[index : index + 3]
    assert head.startswith(f"s.yaml:{position}: {field}: ")
    for fragment in fragments:
        assert fragment in head
    line, column = (int(part) for part in position.split(":"))
    assert source == text.splitlines()[line - 1]
    assert caret == " " * (column - 1) + "^" * len(underlined)
    assert source[column - 1 :].startswith(underlined)
    if "yes" not in new:  # which takes the place of the name
        assert len(lines) == 3


def test_every_mistake_is_reported_in_the_order_of_the_file(write: Write) -> None:
    text = "foo: 1\n" + changed("epochs: 3}\nseeds", "epohcs: 3, bar: 2}\nseeds")
    text = text.replace("0.5]", "x, 2]").replace("random_classes", "{method: el2n, kep: 3}")
    heads = refusal(write(text))[::3]
    assert [head.split(": ")[1] for head in heads] == [
        "foo",
        "methods[0].kep",
        "pruning_ratios[1]",
        "pruning_ratios[2]",
        "pretraining[0].budget.epohcs",
        "pretraining[0].budget.bar",
    ]


def test_fields_around_an_unknown_one_are_still_asked_for(write: Write) -> None:
    heads = refusal(write(changed("name: s\nsource: glyphs_and_textures", "nmae: s")))[::3]
    assert [head.split(": ")[1] for head in heads] == ["nmae", "source"]


def test_numbers_and_words_are_those_of_yaml_1_2(write: Write) -> None:
    for text, value in (("1e-3", 1e-3), ("1.0e-3", 1e-3), ("5e-4", 5e-4), (".5", 0.5), ("0x0", 0)):
        study = load_study(write(changed("[0.0, 0.5]", f"[{text}]")))
        assert study.pruning_ratios == (value,)
        assert isinstance(study.pruning_ratios[0], float)
    tracking = "tracking: {wandb: {project: no, entity: 2024-01-01}}\n"
    wandb = load_study(write(STUDY + tracking)).tracking.wandb
    assert (wandb.project, wandb.entity) == ("no", "2024-01-01")


def test_anchors_and_merges_are_read(write: Write) -> None:
    text = changed(", budget: {epochs: 3}}", ", budget: &b {epochs: 4}}")
    text = text.replace("  budget: {epochs: 3}", "  budget: {<<: *b}")
    assert load_study(write(text)).networks[0].budget == Budget(epochs=4)
    lines = refusal(write(text.replace("epochs: 4", "epochs: -4")))
    assert [line.split(": ")[1] for line in lines[::3]] == [
        "surrogate.budget.epochs",
        "pretraining[0].budget.epochs",
    ]


@pytest.mark.parametrize(
    ("text", "head", "source", "caret"),
    [
        ("a: [1\nb: 2\n", "s.yaml:2:2: not YAML: expected ',' or ']'", "b: 2", " ^"),
        ("a: b: c\n", "s.yaml:1:5: not YAML: mapping values are not allowed", "a: b: c", "    ^"),
        ("a:\n\t- b\n", r"s.yaml:2:1: not YAML: found character '\t'", "\t- b", "^"),
        ("a: 'x", "s.yaml:1:6: not YAML: found unexpected end", "a: 'x", "     ^"),
        ("a: !foo 3", "s.yaml:1:4: not YAML: could not determine", "a: !foo 3", "   ^"),
        ("a: *x", "s.yaml:1:4: not YAML: found undefined alias", "a: *x", "   ^"),
        ("a: 1\nb: 2\na: 3\n", 's.yaml:3:1: not YAML: found duplicate key "a"', "a: 3", "^"),
        ("a: 1\n---\nb: 2\n", "s.yaml:2:1: not YAML: but found another document", "---", "^"),
        ("a: 1\nb: \x07\n", r"s.yaml:2:4: not YAML: character '\x07'", "b: \x07", "   ^"),
        (b"a: 1\nb: caf\xe9\n", "s.yaml:2:7: not UTF-8 text: byte 0xe9", "b: caf\ufffd",
         "      ^"),
        ("- name\n", "s.yaml:1:1: must be a record with at least name,", "- name", "^"),
        ("study\n", "s.yaml:1:1: must be a record with at least name,", "study", "^^^^^"),
    ],
)  # fmt: skip
def test_what_is_no_study_is_shown_where_it_fails(
    write: Write, text: str | bytes, head: str, source: str, caret: str
) -> None:
    lines = refusal(write(text))
    assert lines[0].startswith(head)
    assert lines[1:] == [source, caret]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.yaml: is empty; a study has at least name, source, targets"),
        ("# only a comment\n", "s.yaml: is empty"),
        ("a: " + "9" * 5000, "s.yaml: not YAML: "),
        ("[" * 600, "s.yaml: not YAML: "),
    ],
)
def test_what_cannot_be_read_at_all_is_said(write: Write, text: str, message: str) -> None:
    lines = refusal(write(text))
    assert len(lines) == 1
    assert lines[0].startswith(message)


def test_a_byte_order_mark_and_windows_lines_are_no_mistakes(write: Write) -> None:
    text = STUDY.replace("\n", "\r\n")
    assert load_study(write(b"\xef\xbb\xbf" + text.encode())).name == "s"
    lines = refusal(write(text.replace("0.5]", "1.5]")))
    assert lines[0].startswith("s.yaml:6:23: ")
    assert lines[1] == "pruning_ratios: [0.0, 1.5]"


def test_a_missing_file_names_the_nearest(write: Write) -> None:
    folder = write(STUDY).parent
    (folder / "quickstart.yaml").touch()
    message = "\n".join(refusal(folder / "quikstart.yaml"))
    assert "quikstart.yaml: no such file; did you mean 'quickstart.yaml'?" in message
    assert "s.yaml" in message
    assert "no such file" in refusal(folder / "nowhere" / "x.yaml")[0]


def test_a_folder_is_no_study(write: Write) -> None:
    with pytest.raises(StudyError, match=r"is a folder, not a study; .* holds s\.yaml$"):
        load_study(write(STUDY).parent)


# -- --set -----------------------------------------------------------------------------------------


def test_settings_change_fields_entries_and_bare_names(write: Write) -> None:
    study = load_study(
        write(STUDY),
        [
            "name=other",
            "pretraining[0].budget.epochs=5",
            "source.images_per_class=10",
            "methods.1.keep=lowest",
            "pruning_ratios=[0.25, 5e-1]",
            "runtime.lanes=2",
            "seeds.1=7",
        ],
    )
    assert study.name == "other"
    assert study.networks[0].budget == Budget(epochs=5)
    assert study.source == GlyphsAndTextures(images_per_class=10)
    assert study.methods[1] == LabelMapping(keep="lowest")
    assert study.pruning_ratios == (0.25, 0.5)
    assert study.runtime.lanes == 2
    assert study.seeds == (0, 7)


def test_a_setting_changes_one_place_although_an_anchor_is_used_in_two(write: Write) -> None:
    text = changed(", budget: {epochs: 3}}", ", budget: &b {epochs: 4}}")
    path = write(text.replace("  budget: {epochs: 3}", "  budget: *b"))
    study = load_study(path, ["surrogate.budget.epochs=9"])
    assert isinstance(study.surrogate, Supervised)
    assert study.surrogate.budget == Budget(epochs=9)
    assert study.networks[0].budget == Budget(epochs=4)


def test_a_later_setting_wins(write: Write) -> None:
    settings = ["source=image_folder", "source.path=x", "source.channels=1", "source.image_size=16"]
    study = load_study(write(STUDY), settings)
    assert study.source == ImageFolder(path="x", channels=1, image_size=16)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pretraining[0].budget.epohcs=3", "pretraining[0].budget.epohcs: unknown field 'epohcs'; "
         "did you mean 'epochs'?"),
        ("seeds=[0, 0]", "seeds[1]: repeats an earlier entry"),
        ("seeds.1=0", "seeds[1]: repeats an earlier entry"),
        ("sources.path=x", "sources: unknown field 'sources'; did you mean 'source'?"),
        ("source=image_folder", "source.path: is required"),
        ("source.image_size=32", "targets[0]: held_out_letters has image_size 16, the source 32"),
        ("surrogate.network.width=8", "surrogate.network.arch: is required; allowed: resnet101"),
        ("pretraining.0.budget.examples_seen=9", "pretraining[0].budget: give either epochs or"),
        ("source.images_per_class=x", "source.images_per_class: must be a whole number, got 'x'"),
        ("pruning_ratios[1]=1.0", "pruning_ratios[1]: must be less than 1, got 1.0"),
        ("methods.2=el2n", "methods: has no entry 2; allowed: 0 to 1"),
        ("methods.first=el2n", "methods: has no entry first; allowed: 0 to 1"),
        ("name.x=1", "name: is 's' (a string), which has no field 'x'"),
        ("seeds[0].x=1", "seeds[0]: is 0, which has no field 'x'"),
        ("seeds=[", "seeds: not YAML: "),
        ("seeds", "must be KEY=VALUE"),
        ("=3", "must be KEY=VALUE"),
        ("seeds[x]=3", "must be KEY=VALUE"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_setting_names_it(write: Write, setting: str, message: str) -> None:
    lines = refusal(write(STUDY), setting)
    if setting == "source.image_size=32":
        assert lines[0].startswith(f"s.yaml:4:11: {message}")
    else:
        assert lines[0].startswith(f"--set {setting}: {message}")
        assert len(lines) == 1


def test_every_field_that_may_hold_a_bare_name_can_be_expanded() -> None:
    schema = json_schema("study")
    tags = {}
    for record in [schema, *schema["$defs"].values()]:
        for field, sub in record["properties"].items():
            for union in alternatives(sub.get("items", sub)):
                if "discriminator" in union:
                    tags[field] = union["discriminator"]["propertyName"]
    assert tags == NAMES


def alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What a value may be, through all nested choices."""
    return [schema, *(a for part in schema.get("anyOf", []) for a in alternatives(part))]


def test_what_is_left_out_of_a_record_is_the_objectives_own_default(write: Write) -> None:
    text = changed(
        "objective: supervised\n  budget: {epochs: 3}\n",
        "objective: simclr\n  optimizer: {lr: 1.2}\n  schedule: {warmup: 0.2}\n"
        "  augmentation: {blur: 0}\n",
    )
    [recipe] = load_study(write(text)).networks
    assert isinstance(recipe, SimCLR)
    default = SimCLR()
    assert recipe.optimizer == default.optimizer.model_copy(update={"lr": 1.2})
    assert recipe.schedule == default.schedule.model_copy(update={"warmup": 0.2})
    assert recipe.augmentation == default.augmentation.model_copy(update={"blur": 0})


def test_a_mistake_in_a_completed_record_is_still_named(write: Write) -> None:
    text = changed(
        "objective: supervised\n  budget: {epochs: 3}\n",
        "objective: simclr\n  augmentation: {blurr: 0}\n",
    )
    [line, *_] = refusal(write(text))
    assert line.startswith("s.yaml:9:18: pretraining[0].augmentation.blurr: unknown field")
