"""The steps: their names and order, their shapes and equations, and the source line that is shown for each."""

import doctest
import importlib
import re
import timeit
from pathlib import Path

import numpy as np
import pytest
import tiny
from passes import IDS, cut, traced

from minillm import steps as steps_module
from minillm.predictors.oracle import Oracle
from minillm.predictors.select import Predicted
from minillm.sparsity.selected import SelectedFFN
from minillm.steps import STEPS, Place, explain, place, step_info, step_names
from minillm.transformer.attention import KVCache
from minillm.transformer.ffn import swiglu
from minillm.transformer.rope import rope_table


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blocks.3.mlp.mask", Place(3, "mlp.mask")),
        ("blocks.0.resid_pre", Place(0, "resid_pre")),
        ("blocks.127.attn.rot_q", Place(127, "attn.rot_q")),
        *((name, None) for name in ("embed", "final_norm", "logits", "", "mlp.mask", "mask")),
        *(
            (name, None)
            for name in ("blocks.*.mlp.mask", "blocks.3", "blocks.3.", "blocks..mlp", "my.blocks.3.mlp.mask")
        ),
    ],
)
def test_place_gives_the_layer_and_the_step_inside_it_and_none_outside_the_layers(name, expected):
    assert place(name) == expected


def test_every_step_of_a_pass_has_its_place_and_its_row():
    names = step_names(2)
    assert [name for name in names if place(name) is None] == ["embed", "final_norm", "logits"]
    assert {at.layer for name in names if (at := place(name))} == {0, 1}
    assert all(step_info(name) for name in names)
    assert step_info("blocks.1.mlp.mid") is step_info("blocks.*.mlp.mid") is STEPS["blocks.*.mlp.mid"]


def test_a_name_that_comes_again_is_not_parsed_again():
    place("blocks.3.mlp.mask")
    calls = 20_000
    best = min(timeit.repeat(lambda: place("blocks.3.mlp.mask"), number=calls, repeat=5)) / calls
    assert best < 1e-6


def test_the_examples_of_the_docstrings_are_right():
    result = doctest.testmod(steps_module)
    assert result.failed == 0 and result.attempted == 2


BEFORE_FFN = """resid_pre attn.norm attn.q attn.k attn.v attn.rot_q attn.rot_k attn.scores attn.pattern attn.z attn.out
    resid_mid mlp.norm""".split()


DENSE_FFN = "mlp.gate_pre mlp.gate mlp.up mlp.mid mlp.out".split()


CUT_FFN = {
    ("dhar", "masked"): "gate_pre gate up mid mask_gate mask_up mask reads mid_cut out mask_out",
    ("cats", "masked"): "gate_pre gate up mid mask_gate mask reads mid_cut out",
    ("mid", "masked"): "gate_pre gate up mid mask reads mid_cut out",
    ("teal", "masked"): "mask_in_gate mask_in_up gate_pre gate up mid mask reads mid_cut out",
    ("griffin", "masked"): "gate_pre gate up mid mask reads mid_cut out",
    ("dhar", "gathered"): "gate_pre gate mask_gate mask reads mid_cut out mask_out",
    ("cats", "gathered"): "gate_pre gate mask_gate mask reads mid_cut out",
    ("mid", "gathered"): "gate_pre gate mask reads mid_cut out",
    ("countdown", "gathered"): "up mask_up mask reads mid_cut out",
    ("griffin", "gathered"): "mask reads mid_cut out",
}


def expected_names(ffn: list[str], layers: int = 2) -> list[str]:
    inside = [*BEFORE_FFN, *ffn, "resid_post"]
    return ["embed", *(f"blocks.{i}.{name}" for i in range(layers) for name in inside), "final_norm", "logits"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_steps_of_a_dense_pass_are_these_in_this_order(family):
    names = list(traced(tiny.model(family)))
    assert names == expected_names(DENSE_FFN)
    assert names == step_names(2)


@pytest.mark.parametrize(("policy", "form"), CUT_FFN)
def test_the_steps_of_a_cut_pass_are_these_in_this_order(policy, form):
    model = tiny.model()
    names = list(traced(model, ffn=cut(model, policy, form=form)))
    assert names == expected_names([f"mlp.{name}" for name in CUT_FFN[policy, form].split()])


def test_every_step_of_the_table_occurs_and_has_the_order_of_the_table():
    model, found = tiny.model(), set()
    mid = cut(model, "mid").thresholds
    oracle = Predicted(Oracle(model, mid), mid)
    predicted = SelectedFFN(oracle, truth=mid, guess=oracle)
    passes = [(model, ffn) for ffn in (*(cut(model, policy) for policy in ("dhar", "teal", "griffin")), predicted)]
    passes += [(tiny.model(family), swiglu) for family in tiny.OTHERS]
    for each, ffn in passes:
        names = [re.sub(r"\.1\.", ".*.", name) for name in traced(each, ffn=ffn) if ".0." not in name]
        assert names == [name for name in STEPS if name in names]
        found |= {*names}
    assert found == {*STEPS}


STEPS_OF = {  # how the steps of a family differ from a Llama's: those it lacks, those it has beside them
    "granite": ("", ""), "smollm3": ("", ""), "gemma": ("", ""), "stablelm": ("", ""),
    "olmo2": ("", "attn.out_norm mlp.out_norm"), "gemma2": ("", "attn.out_norm mlp.out_norm"),
    "gemma3_text": ("", "attn.out_norm mlp.out_norm"), "gpt_neox": ("mlp.up resid_mid", ""),
    "phi": ("mlp.up resid_mid", ""), "opt": ("mlp.up", "embed_positions"),
    "opt_350m": ("mlp.up final_norm", "project_in embed_positions project_out"),
}  # fmt: skip


@pytest.mark.parametrize("family", tiny.OTHERS)
def test_the_steps_of_each_family_are_those_of_a_llama_but_for_these(family):
    names, model = [], tiny.model(family)
    lacks, has = (text.split() for text in STEPS_OF[family])
    for name in expected_names(DENSE_FFN):
        short = re.sub(r"^blocks\.\d\.", "", name)
        after = {"embed": ["project_in", "embed_positions"], "attn.out": ["attn.out_norm"], "mlp.out": ["mlp.out_norm"],
                 "final_norm": ["project_out"]}.get(short, [])  # fmt: skip
        begin = name.removesuffix(short)
        names += [name] * (short not in lacks) + [begin + more for more in after if more in has]
    assert list(traced(model)) == names == model.config.step_names()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_tap_has_the_dimensions_of_the_table_and_the_dtype_of_the_model(family, dtype):
    # every letter has a size of its own, so that no two dimensions can be confused
    model = tiny.model(family, dtype, hidden_size=10, intermediate_size=14)
    config, before = model.config, 3
    sizes = {"T": 5, "S": 5, "D": 10, "F": 14, "H": 4, "K": 2, "d": 4, "V": 31}
    cache = KVCache(config, 8, dtype)
    for ids, steps in ((IDS, None), (IDS[:before], cache), (IDS, cache)):
        found = traced(model, ids, cache=steps, ffn=cut(model, "dhar"))
        sizes["T"], sizes["S"] = len(ids), steps.length if steps else len(ids)
        for name, value in found.items():
            assert value.shape == tuple(sizes.get(letter, 3) for letter in step_info(name).dims.split()), name
            kinds = {"mask": bool, "reads": np.float64}  # what was read is a report, no value of the model
            kind = next((kind for word, kind in kinds.items() if f".mlp.{word}" in name), dtype)
            assert value.dtype == kind, name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_step_follows_from_the_steps_before_it_by_its_equation(family):
    model = tiny.model(family, num_hidden_layers=1)
    layer, step = model.layers[0], {name.removeprefix("blocks.0."): v for name, v in traced(model).items()}

    def norm(h, weight):
        return h / np.sqrt((h**2).mean(axis=-1, keepdims=True) + 1e-5) * weight

    def product(x, weight, bias):
        return x @ weight.T + (0 if bias is None else bias)

    def heads(kind):
        y = product(step["attn.norm"], getattr(layer, f"{kind}_proj"), getattr(layer, f"{kind}_bias")).reshape(5, -1, 4)
        weight = getattr(layer, f"{kind}_norm", None)
        return y if weight is None else norm(y, weight)

    cos, sin = (table[:, None] for table in rope_table(model.config.rope, 5, np.float64))
    keys, values = (np.repeat(step[name], 2, axis=1) for name in ("attn.rot_k", "attn.v"))  # 2 query heads to each
    t, s = np.indices((5, 5))
    seen = (s <= t) & (t - s < (layer.window or 5))
    weights = np.where(seen, np.exp(step["attn.scores"]), 0)
    expected = {
        "embed": model.embed_tokens[IDS],
        "resid_pre": step["embed"],
        "attn.norm": norm(step["resid_pre"], layer.input_layernorm),
        **{f"attn.{kind}": heads(kind) for kind in "qkv"},
        **{
            f"attn.rot_{kind}": np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
            for kind in "qk"
            for a, b in [np.split(step[f"attn.{kind}"], 2, axis=-1)]
        },
        "attn.scores": np.einsum("thd,shd->hts", step["attn.rot_q"], keys) / 2,  # sqrt(d) = 2
        "attn.pattern": weights / weights.sum(axis=-1, keepdims=True),
        "attn.z": np.einsum("hts,shd->thd", step["attn.pattern"], values),
        "attn.out": product(step["attn.z"].reshape(5, -1), layer.o_proj, layer.o_bias),
        "resid_mid": step["resid_pre"] + step["attn.out"],
        "mlp.norm": norm(step["resid_mid"], layer.post_attention_layernorm),
        "mlp.gate_pre": product(step["mlp.norm"], layer.gate_proj, layer.gate_bias),
        "mlp.gate": step["mlp.gate_pre"] / (1 + np.exp(-step["mlp.gate_pre"])),
        "mlp.up": product(step["mlp.norm"], layer.up_proj, layer.up_bias),
        "mlp.mid": step["mlp.gate"] * step["mlp.up"],
        "mlp.out": product(step["mlp.mid"], layer.down_proj, layer.down_bias),
        "resid_post": step["resid_mid"] + step["mlp.out"],
        "final_norm": norm(step["resid_post"], model.norm),
        "logits": step["final_norm"] @ model.lm_head.T,
    }
    assert set(expected) == set(step)
    for name, value in expected.items():
        np.testing.assert_allclose(step[name], value, rtol=0, atol=1e-13 * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("name", STEPS)
def test_explain_names_a_source_line_that_really_contains_the_tap(name):
    text = explain(name.replace("*", "3"))
    file, number, shown = re.search(r"source +(\w+\.py):(\d+)  (.+)$", text).groups()
    module = STEPS[name].source.partition(":")[0]
    path = Path(importlib.import_module(f"minillm.{module}").__file__)
    line = path.read_text(encoding="utf-8").splitlines()[int(number) - 1]
    tails = [name.removeprefix("blocks.*."), name.rsplit(".", 1)[-1]]
    assert path.name == file and line.strip() == shown
    assert any(f'tap("{tail}"' in line or f'tap_mask("{tail}"' in line for tail in tails), line
    assert STEPS[name].equation in text and STEPS[name].hugging_face in text
    assert f"dimensions    {STEPS[name].dims}" in text


def test_no_two_steps_are_explained_by_the_same_tap():
    where = [re.search(r"source +(.*)", explain(name))[1] for name in STEPS]
    taken = [place for place in where if where.count(place) > 1]
    assert {place.split("  ")[1] for place in taken} == {'q, k, v = tap("q", q), tap("k", k), tap("v", v)'}
