"""Which families of timm trace, merge and grow: one network of each, a process each, a table at the end.

    python benchmarks/zoo.py                 # those that are missing in benchmarks/results/zoo.jsonl
    python benchmarks/zoo.py --only vit swin # some, again
    python benchmarks/zoo.py --table         # writes docs/zoo.md from what is there

Needs timm. Nothing is fetched: weights are random, so that what counts is whether units are found again:

- *traces*: the groups are derived, and permuting each of them (with what is tied to it) leaves the logits as they are;
- *merges*: the network and a copy of it with all groups permuted at random become one at 1.0x by least squares, and
  that student's logits on pictures that it was not calibrated with are the network's;
- *grows*: two networks become one of 1.5x the multiply-accumulates, and its logits are finite.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, TABLE = ROOT / "benchmarks" / "results" / "zoo.jsonl", ROOT / "docs" / "zoo.md"
BOUND = 1e-3  # largest change of the logits, relative to the largest logit, as in pleas check
BACK = 1e-2  # the same between a network and its merge with a permuted copy, through a fit in float32
PICTURES = 16

SMALL = 64
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    # family: (name in timm, side of the pictures, arguments that make it smaller)
    "resnet": ("resnet18", SMALL, {}),
    "resnet-d": ("resnet26d", SMALL, {}),
    "resnetaa": ("resnetaa34d", SMALL, {"layers": [1, 1, 1, 1]}),
    "resnetblur": ("resnetblur18", SMALL, {}),
    "resnet_gn": ("resnet50_gn", SMALL, {"layers": [1, 1, 1, 1]}),
    "resnetv2": ("resnetv2_18", SMALL, {}),
    "resnext": ("resnext50_32x4d", SMALL, {"layers": [1, 1, 1, 1]}),
    "seresnet": ("seresnet18", SMALL, {}),
    "legacy_senet": ("legacy_seresnet18", SMALL, {}),
    "ecaresnet": ("ecaresnet26t", SMALL, {}),
    "resnest": ("resnest14d", SMALL, {}),
    "res2net": ("res2net50_48w_2s", SMALL, {"layers": [1, 1, 1, 1]}),
    "skresnet": ("skresnet18", SMALL, {}),
    "regnetx": ("regnetx_002", SMALL, {}),
    "regnety": ("regnety_002", SMALL, {}),
    "regnetz": ("regnetz_005", SMALL, {}),
    "efficientnet": ("efficientnet_b0", SMALL, {}),
    "efficientnetv2": ("efficientnetv2_rw_t", SMALL, {}),
    "efficientnet_lite": ("efficientnet_lite0", SMALL, {}),
    "tf_efficientnet": ("tf_efficientnet_b0", SMALL, {}),
    "tf_efficientnetv2": ("tf_efficientnetv2_b0", SMALL, {}),
    "tf_efficientnet_lite": ("tf_efficientnet_lite0", SMALL, {}),
    "mobilenetv1": ("mobilenetv1_100", SMALL, {}),
    "mobilenetv2": ("mobilenetv2_050", SMALL, {}),
    "mobilenetv3": ("mobilenetv3_small_050", SMALL, {}),
    "mobilenetv4": ("mobilenetv4_conv_small_035", SMALL, {}),
    "mnasnet": ("mnasnet_small", SMALL, {}),
    "semnasnet": ("semnasnet_050", SMALL, {}),
    "mixnet": ("mixnet_s", SMALL, {}),
    "tinynet": ("tinynet_e", SMALL, {}),
    "ghostnet": ("ghostnet_050", SMALL, {}),
    "repghost": ("repghostnet_050", SMALL, {}),
    "hardcorenas": ("hardcorenas_a", SMALL, {}),
    "fbnetc": ("fbnetc_100", SMALL, {}),
    "fbnetv3": ("fbnetv3_b", SMALL, {}),
    "lcnet": ("lcnet_035", SMALL, {}),
    "convnext": ("convnext_atto", SMALL, {}),
    "convnextv2": ("convnextv2_atto", SMALL, {}),
    "inception_next": ("inception_next_atto", SMALL, {}),
    "densenet": ("densenet121", SMALL, {"block_config": [3, 3, 3, 3]}),
    "dla": ("dla46_c", SMALL, {}),
    "hrnet": ("hrnet_w18_small", SMALL, {}),
    "inception_v3": ("inception_v3", 96, {}),
    "inception_v4": ("inception_v4", 96, {}),
    "inception_resnet_v2": ("inception_resnet_v2", 96, {}),
    "xception": ("legacy_xception", SMALL, {}),
    "xception_aligned": ("xception41", SMALL, {}),
    "vgg": ("vgg11", SMALL, {}),
    "vgg_bn": ("vgg11_bn", SMALL, {}),
    "repvgg": ("repvgg_a0", SMALL, {}),
    "mobileone": ("mobileone_s0", SMALL, {}),
    "rexnet": ("rexnet_100", SMALL, {}),
    "nf_resnet": ("nf_resnet26", SMALL, {}),
    "nfnet": ("eca_nfnet_l0", SMALL, {}),
    "dpn": ("dpn48b", SMALL, {}),
    "cspresnet": ("cspresnet50", SMALL, {}),
    "darknet": ("darknet17", SMALL, {}),
    "cspdarknet": ("cspdarknet53", SMALL, {}),
    "gernet": ("gernet_s", SMALL, {}),
    "selecsls": ("selecsls42b", SMALL, {}),
    "tresnet": ("tresnet_m", SMALL, {}),
    "vovnet": ("ese_vovnet19b_slim_dw", SMALL, {}),
    "starnet": ("starnet_s050", SMALL, {}),
    "repvit": ("repvit_m0_9", SMALL, {}),
    "fastvit": ("fastvit_t8", SMALL, {}),
    "poolformer": ("poolformer_s12", SMALL, {}),
    "efficientformer": ("efficientformer_l1", 224, {}),
    "levit": ("levit_128s", 224, {}),
    "mobilevit": ("mobilevit_xxs", SMALL, {}),
    "edgenext": ("edgenext_xx_small", SMALL, {}),
    "vit": ("vit_tiny_patch16_224", SMALL, {"img_size": SMALL, "depth": 3}),
    "deit": ("deit3_small_patch16_224", SMALL, {"img_size": SMALL, "depth": 3}),
    "beit": ("beit_base_patch16_224", SMALL, {"img_size": SMALL, "depth": 2}),
    "swin": ("swin_tiny_patch4_window7_224", SMALL, {"img_size": SMALL, "window_size": 4, "depths": [1, 1, 2, 1]}),
    "pvt": ("pvt_v2_b0", SMALL, {}),
    "coat": ("coat_tiny", SMALL, {"img_size": SMALL}),
    "cait": ("cait_xxs24_224", SMALL, {"img_size": SMALL, "depth": 3}),
    "xcit": ("xcit_nano_12_p16_224", SMALL, {"img_size": SMALL, "depth": 3}),
    "mixer": ("mixer_s32_224", SMALL, {"img_size": SMALL}),
    "nest": ("nest_tiny", SMALL, {"img_size": SMALL}),
}


STEPS = ("trace", "merge", "grow")
OF = {"trace": "groups", "merge": "away", "grow": "ratio"}  # what a step that went well has found
VAST = {  # what is not tried, and why
    "vgg": "a layer reads 25,088 values, whose moments take 5 GB",
    "vgg_bn": "a layer reads 25,088 values, whose moments take 5 GB",
}


def build(family: str, seed: int) -> Any:
    """A network of the family with random weights, none of them constant, that are a fresh network's otherwise."""
    import timm
    import torch

    from project.models import written_out
    from project.report.check import randomise_constants

    name, side, arguments = FAMILIES[family]
    torch.manual_seed(seed)
    network = written_out(timm.create_model(name, num_classes=10, **arguments).eval())
    with torch.no_grad():
        randomise_constants(network, (3, side, side))
    return network


def examine(family: str, steps: Sequence[str] = STEPS) -> dict[str, Any]:
    """What a family can do; the sentence of what it cannot."""
    import torch

    from project.symmetry import check_equivalence, trace

    torch.set_num_threads(1)
    name, side, arguments = FAMILIES[family]
    found: dict[str, Any] = {"family": family, "network": name, "side": side, "arguments": arguments}
    start = time.process_time()
    try:
        network = build(family, 0)
        spec = trace(network, (3, side, side))
        changes = check_equivalence(network, spec, tolerance=BOUND)
        kept = [group for group in spec.groups.values() if group.fixed not in (None, "input", "output")]
        found |= {"groups": len(changes), "change": max(changes.values()), "kept": len(kept)}
        found["traced"] = time.process_time() - start
        found["layers"] = len(spec.layers)
    except Exception as error:
        return found | {"trace": _sentence(error)}
    for step, what in (("merge", _gives_back), ("grow", _grows)):
        if step not in steps:
            continue
        if family in VAST:
            found[step] = f"not tried: {VAST[family]}"
            continue
        start = time.process_time()
        try:
            found |= what(family, network, spec)
        except Exception as error:
            found[step] = _sentence(error)
        found[f"{step} seconds"] = time.process_time() - start
        _say(found)
    return found


def _gives_back(family: str, network: Any, spec: Any) -> dict[str, Any]:
    """Merge a network with a permuted copy of itself."""
    import copy

    import torch

    import project
    from project.symmetry import permute_state, random_orders

    generator = torch.Generator().manual_seed(1)
    other = copy.deepcopy(network)
    other.load_state_dict(permute_state(network.state_dict(), spec, random_orders(spec, spec.free, generator)))
    pictures = torch.randn(2 * PICTURES, *spec.picture, generator=generator)
    student = project.merge(
        {"one": network, "other": other},
        {"one": pictures[:PICTURES], "other": pictures[:PICTURES]},
        label_space="shared", classes=[str(one) for one in range(10)], progress=False,
    )  # fmt: skip
    with torch.no_grad():
        wanted, got = network(pictures[PICTURES:]), student(pictures[PICTURES:])
    away = float((got - wanted).abs().max() / wanted.abs().max())
    if not away <= BACK:
        return {"away": away, "merge": f"the logits are {away:.1e} away (relative); allowed: {BACK:g}."}
    return {"away": away}


def _grows(family: str, network: Any, spec: Any) -> dict[str, Any]:
    """Merge two networks to one and a half times the size."""
    import torch

    import project
    from project.alignment import UnitMap
    from project.allocation import nominal_macs

    pictures = torch.randn(2 * PICTURES, *spec.picture, generator=torch.Generator().manual_seed(2))
    sources = {"one": network, "other": build(family, 1)}
    given = {"one": pictures[:PICTURES], "other": pictures[PICTURES:]}
    student = project.merge(sources, given, budget=1.5, method="permutation", progress=False)
    if not bool(student(pictures).isfinite().all()):
        return {"grow": "the logits are not finite."}
    merged = {name: UnitMap.identity(group.size, 2) for name, group in spec.groups.items()}
    return {"ratio": student.macs / nominal_macs(spec, merged)}


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:400]


def _say(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def apart(family: str, steps: Sequence[str], seconds: float) -> dict[str, Any]:
    """Examine a family in a process of its own, for so many seconds; what it had found by then counts."""
    command = [sys.executable, __file__, "--here", family, "--steps", *steps]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        told, wrong = process.communicate(timeout=seconds)
        end = wrong.strip().splitlines()[-1][:300] if process.returncode and wrong.strip() else ""
    except subprocess.TimeoutExpired:
        process.kill()
        told, _ = process.communicate()
        end = f"took more than {seconds:.0f} s"
    lines = [line for line in told.splitlines() if line.startswith("{")]
    found = json.loads(lines[-1]) if lines else {"family": family, "network": FAMILIES[family][0], "trace": end}
    if end and "trace" not in found:
        found.setdefault(next((step for step in steps[1:] if f"{step} seconds" not in found), "end"), end)
    return found


def known() -> dict[str, dict[str, Any]]:
    """What has been found so far, the latest of each family."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    found = {one["family"]: one for one in map(json.loads, lines)}
    return {family: found[family] for family in FAMILIES if family in found}


def write(found: dict[str, dict[str, Any]]) -> None:
    """The table."""
    rows = [_row(one) for one in found.values()]
    counts = {step: sum(_did(one, step) for one in found.values()) for step in STEPS}
    tried = {step: counts[step] + sum(_failed(one, step) for one in found.values()) for step in STEPS}
    TABLE.write_text(
        f"# Networks of timm\n\n"
        f"Written by `benchmarks/zoo.py`, which says what the columns mean: of {len(found)} families "
        f"{counts['trace']} trace with every group proven,\n{counts['merge']} of {tried['merge']} tried merge "
        f"at 1.0× with least squares (the merge of a network and a permuted copy gives the\nnetwork back), and "
        f"{counts['grow']} of {tried['grow']} grow to 1.5×. Random "
        f"weights, pictures of the side given; what fails names its line.\n\n"
        f"*Kept* are groups whose order means something (neighbouring channels read by a window, say): they are "
        f"merged unit by unit as they stand,\nwhich is right for networks that were fine-tuned from one.\n\n"
        f"| family | network | side | groups | kept | largest change | merges | grows |\n"
        f"|---|---|---:|---:|---:|---:|---|---|\n" + "\n".join(rows) + "\n"
    )


def _did(one: dict[str, Any], step: str) -> bool:
    return step not in one and OF[step] in one


def _failed(one: dict[str, Any], step: str) -> bool:
    return "trace" not in one and step in one and not one[step].startswith("not tried")


def _lacks(one: dict[str, Any], step: str) -> bool:
    """Whether a step has not been tried, and could be."""
    return "trace" not in one and step not in one and OF[step] not in one


def _row(one: dict[str, Any]) -> str:
    cells = [one["family"], f"`{one['network']}`", str(one.get("side", ""))]
    if "trace" in one:
        return "| " + " | ".join([*cells, "", "", "", _cell(one["trace"]), ""]) + " |"
    cells += [str(one["groups"]), str(one["kept"] or ""), f"{one['change']:.0e}"]
    merges = f"yes, {one['away']:.0e} away" if _did(one, "merge") else _cell(one.get("merge", "not tried"))
    grows = f"yes, {one['ratio']:.2f}×" if _did(one, "grow") else _cell(one.get("grow", "not tried"))
    return "| " + " | ".join([*cells, merges, grows]) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Examine what is missing, or what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), help="these families, whether known or not")
    parser.add_argument("--failed", action="store_true", help="those that failed in some step, again")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="what is tried, tracing first")
    parser.add_argument("--seconds", type=float, default=300, help="most that a family may take")
    parser.add_argument("--here", choices=list(FAMILIES), help="one family in this process; prints what is found")
    parser.add_argument("--table", action="store_true", help="only write the table of what is known")
    given = parser.parse_args()
    if given.here:
        _say(examine(given.here, given.steps))
        return
    before = known()
    lacking = {name for name in FAMILIES if any(_lacks(before.get(name, {}), step) for step in given.steps)}
    again = {name for name, one in before.items() if not all(_did(one, step) for step in given.steps)}
    wanted = given.only or [name for name in FAMILIES if name in lacking or (given.failed and name in again)]
    for family in [] if given.table else wanted:
        found = apart(family, ["trace", *(step for step in given.steps if step != "trace")], given.seconds)
        if "trace" not in found:  # what other steps found before still holds
            kept = [step for step in STEPS if step not in given.steps]
            names = {name for step in kept for name in (step, OF[step], f"{step} seconds")}
            found = {**{key: one for key, one in before.get(family, {}).items() if key in names}, **found}
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as lines:
            lines.write(json.dumps(found) + "\n")
        sys.stdout.write(f"{family}: {found}\n")
        sys.stdout.flush()
    found = known()
    RESULTS.write_text("".join(json.dumps(one) + "\n" for one in found.values()))
    write(found)


if __name__ == "__main__":
    main()
