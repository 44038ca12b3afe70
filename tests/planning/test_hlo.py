"""The text of compiled programs: shapes, loops, fusions, exchanges; each counted by hand."""

import numpy as np
import pytest

from jmm.planning.hlo import Mesh, Program, convolution_flops
from jmm.planning.hlo_text import instruction, replica_group, shapes_of

MESH = Mesh({"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1})

LOOP = """HloModule jit_step, is_scheduled=true

%fused_slice (param_0: f32[6,8,16], param_1: s32[]) -> bf16[1,8,16] {
  %param_0 = f32[6,8,16]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %taken = f32[1,8,16]{2,1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %small = bf16[1,8,16]{2,1,0:T(8,128)(2,1)} convert(%taken)
}

%fused_update (param_0: f32[6,4,16], param_1: f32[4,16], param_2: s32[]) -> f32[6,4,16] {
  %param_0.1 = f32[6,4,16]{2,1,0:T(8,128)} parameter(0)
  %param_1.1 = f32[4,16]{1,0:T(8,128)} parameter(1)
  %param_2.1 = s32[]{:T(128)} parameter(2)
  %bent = f32[1,4,16]{2,1,0:T(8,128)} bitcast(%param_1.1)
  ROOT %kept = f32[6,4,16]{2,1,0:T(8,128)} dynamic-update-slice(%param_0.1, %bent, %param_2.1, %param_2.1, %param_2.1)
}

%body (state: (s32[], f32[4,8], f32[6,8,16], f32[6,4,16])) -> (s32[], f32[4,8], f32[6,8,16], f32[6,4,16]) {
  %state = (s32[]{:T(128)}, f32[4,8]{1,0}, f32[6,8,16]{2,1,0}, /*index=3*/f32[6,4,16]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %w = f32[6,8,16]{2,1,0:T(8,128)} get-tuple-element(%state), index=2
  %out = f32[6,4,16]{2,1,0:T(8,128)} get-tuple-element(%state), index=3
  %layer = bf16[1,8,16]{2,1,0:T(8,128)(2,1)} fusion(%w, %i), kind=kLoop, calls=%fused_slice, backend_config={}
  %flat = bf16[8,16]{1,0:T(8,128)(2,1)} bitcast(%layer)
  %made = f32[4,16]{1,0:T(8,128)S(1)} convolution(%x, %flat), dim_labels=bf_io->bf
  %next = f32[6,4,16]{2,1,0:T(8,128)} fusion(%out, %made, %i), kind=kLoop, calls=%fused_update
  ROOT %again = (s32[]{:T(128)}, f32[4,8]{1,0}, f32[6,8,16]{2,1,0}, f32[6,4,16]{2,1,0}) tuple(%i, %x, %w, %next)
}

%condition (state.1: (s32[], f32[4,8], f32[6,8,16], f32[6,4,16])) -> pred[] {
  %most = s32[]{:T(128)} constant(6)
  %state.1 = (s32[]{:T(128)}, f32[4,8]{1,0}, f32[6,8,16]{2,1,0}, f32[6,4,16]{2,1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %most), direction=LT
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %p = (s32[]{:T(128)}, f32[4,8]{1,0}, f32[6,8,16]{2,1,0}, f32[6,4,16]{2,1,0}) parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[]{:T(128)} copy(%zero)
  %first = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %weights = f32[6,8,16]{2,1,0} get-tuple-element(%p), index=2
  %results = f32[6,4,16]{2,1,0} get-tuple-element(%p), index=3
  %in = (s32[], f32[4,8]{1,0}, f32[6,8,16]{2,1,0}, f32[6,4,16]{2,1,0}) tuple(%start, %first, %weights, %results)
  %w.1 = f32[6,8,16]{2,1,0:T(8,128)} get-tuple-element(%p), index=2
  %begun = (f32[6,8,16]{2,1,0:T(8,128)S(1)}, f32[6,8,16]{2,1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%w.1)
  %near = f32[6,8,16]{2,1,0:T(8,128)S(1)} copy-done(%begun)
  %run = (s32[], f32[4,8]{1,0}, f32[6,8,16]{2,1,0}, f32[6,4,16]{2,1,0}) while(%in), condition=%condition, body=%body
  ROOT %last = f32[4,8]{1,0:T(8,128)} get-tuple-element(%run), index=1
}
"""


def test_a_loop_is_counted_as_often_as_it_runs_and_of_its_stacks_a_slice():
    found = {each.name: each for each in Program(LOOP, MESH).operations()}
    assert set(found) == {"%begun", "%layer", "%made", "%next", "%start"}
    assert found["%made"].times == 6 and found["%made"].flops == 2 * 4 * 16 * 8
    # Two bytes of each weight for the product, whose result stays on the chip; the input is read in full.
    assert found["%made"].moved == 4 * 8 * 4 + 8 * 16 * 2
    # Of the stack of six layers one is read, and of the six results one is written.
    assert found["%layer"].moved == 8 * 16 * 4 + 4 + 8 * 16 * 2
    assert found["%next"].moved == 4 * 16 * 4 + 4
    assert found["%begun"].hidden and found["%begun"].moved == 6 * 8 * 16 * 4


def test_a_slice_within_a_fusion_within_a_fusion_is_no_more_than_a_slice():
    nested = LOOP.replace(
        "HloModule jit_step",
        """HloModule jit_step

%outer (param_0: f32[6,8,16], param_1: s32[]) -> bf16[1,8,16] {
  %param_0 = f32[6,8,16]{2,1,0} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  ROOT %inner = bf16[1,8,16]{2,1,0} fusion(%param_0, %param_1), kind=kLoop, calls=%fused_slice
}
""",
    )
    before = {each.name: each for each in Program(LOOP, MESH).operations()}["%layer"]
    body = nested.replace("calls=%fused_slice", "calls=%outer").replace("calls=%outer", "calls=%fused_slice", 1)
    after = {each.name: each for each in Program(body, MESH).operations()}["%layer"]
    assert after.moved == before.moved


def test_a_loop_whose_first_round_stands_before_it_runs_once_less():
    found = {each.name: each for each in Program(LOOP.replace("constant(0)", "constant(1)"), MESH).operations()}
    assert found["%made"].times == 5


def test_what_goes_to_another_slice():
    text = """HloModule jit_step

ENTRY %main (g: f32[8,128]) -> f32[8,128] {
  %g = f32[8,128]{1,0} parameter(0)
  %t = token[] after-all()
  %send = (f32[8,128], u32[], token[]) send(%g, %t), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[8,128], u32[], token[]) recv(%t), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send)
  %got = (f32[8,128]{1,0}, token[]) recv-done(%recv)
  ROOT %sum = f32[8,128]{1,0} get-tuple-element(%got), index=0
}
"""
    (found,) = Program(text, Mesh({"data": 8}, slices=4)).operations()
    assert found.collective == ("all-reduce", 2 * 8 * 128 * 4 * 3 / 4, ("slices",), True) and found.moved == 0


EXCHANGES = """HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%begin (q: bf16[1,8]) -> (bf16[1,8], bf16[4,8]) {
  %q = bf16[1,8]{1,0} parameter(0)
  %gathered = bf16[4,8]{1,0} all-gather(%q), channel_id=7, replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}
  ROOT %b1 = (bf16[1,8]{1,0}, bf16[4,8]{1,0}) custom-call(%gathered), custom_call_target="AsyncCollectiveStart"
}

%between (q.1: bf16[1,8], m: f32[4,4]) -> f32[4,4] {
  %q.1 = bf16[1,8]{1,0} parameter(0)
  %m = f32[4,4]{1,0} parameter(1)
  %gathered.1 = bf16[4,8] all-gather(%q.1), channel_id=7, replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}
  ROOT %product = f32[4,4]{1,0} convolution(%m, %m), dim_labels=bf_io->bf
}

%all-reduce-scatter (g: f32[4,4]) -> f32[1,4] {
  %g = f32[4,4]{1,0} parameter(0)
  %whole = f32[4,4]{1,0} all-reduce(%g), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  ROOT %part = f32[1,4]{1,0} slice(%whole), slice={[0:1], [0:4]}
}

ENTRY %main (x: bf16[1,8], y: f32[4,4]) -> f32[4,4] {
  %x = bf16[1,8]{1,0} parameter(0)
  %y = f32[4,4]{1,0} parameter(1)
  %start = (bf16[1,8]{1,0}, bf16[4,8]{1,0}) fusion(%x), kind=kCustom, calls=%begin
  %work = f32[4,4]{1,0} fusion(%x, %y), kind=kOutput, calls=%between
  %scattered = f32[1,4]{1,0} fusion(%work), kind=kCustom, calls=%all-reduce-scatter
  %mean = (f32[4,4], f32[2]) all-reduce(%work, %two), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}
  %two = f32[2]{0} constant({1, 2})
  %turned = (f32[4,4], f32[4,4]) collective-permute-start(%work), channel_id=2, source_target_pairs={{0,1},{1,0}}
  ROOT %done = f32[4,4]{1,0} collective-permute-done(%turned)
}
"""


def test_exchanges_are_counted_once_with_their_axes():
    found = [each.collective for each in Program(EXCHANGES, MESH).operations() if each.collective]
    assert [(each.kind, each.sent, each.axes, each.hidden) for each in found] == [
        ("all-gather", 3 * 16, ("fsdp",), True),
        ("reduce-scatter", 64 * 3 / 4, ("fsdp",), False),
        ("all-reduce", 2 * (64 + 8) / 2, ("data",), False),
        ("collective-permute", 64, ("fsdp",), True),
    ]
    flops = [each.flops for each in Program(EXCHANGES, MESH).operations()]
    assert sum(flops) == 2 * 4 * 4 * 4


@pytest.mark.parametrize(
    "text, group",
    [
        ("replica_groups={{0,2},{1,3}}, x", [0, 2]),
        ("replica_groups=[2,2]<=[4], x", [0, 1]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [0, 2]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [0, 2]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a'}, x", [0, 1]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}, x", [0, 2]),
        ("channel_id=1, x", [0, 1, 2, 3]),
    ],
)
def test_groups_in_every_spelling(text, group):
    assert replica_group(text, 4) == group


@pytest.mark.parametrize(
    "line, left, right, products",
    [
        # x [4, 8] by w [8, 16].
        ("f32[4,16] convolution(%a, %b), dim_labels=bf_io->bf", "f32[4,8]", "f32[8,16]", 4 * 16 * 8),
        # Attention's scores, a product for each of 3 rows and 2 heads: the window falls on gaps but once.
        (
            "f32[3,2,5,7] convolution(%a, %b), window={size=3x2 stride=2x1 lhs_dilate=3x2}, dim_labels=01bf_01oi->01bf",
            *("f32[3,2,5,11]", "f32[3,2,7,11]", 3 * 2 * 5 * 7 * 11),
        ),
        # Heads [2, 4] of keys, written as a convolution whose padding is no product.
        (
            "f32[9,2,4] convolution(%a, %b), window={size=2 pad=1_1 rhs_reversal=1}, dim_labels=bf0_io0->b0f",
            *("f32[9,6,1]", "f32[6,4,2]", 9 * 6 * 2 * 4),
        ),
        # Pictures [2, 9, 9, 3] by 3 × 3, every second place.
        (
            "f32[2,4,4,5] convolution(%a, %b), window={size=3x3 stride=2x2}, dim_labels=b01f_01io->b01f",
            *("f32[2,9,9,3]", "f32[3,3,3,5]", 2 * 4 * 4 * 5 * 27),
        ),
    ],
)
def test_products_written_as_convolutions(line, left, right, products):
    each = instruction(f"  %c = {line}, metadata={{}}")
    assert convolution_flops(each, *shapes_of(left), *shapes_of(right)) == 2 * products


def test_lines():
    kinds = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}, pred[5]{0})"
    each = instruction(f'  ROOT %k = {kinds} custom-call(%a, /*index=1*/%b), custom_call_target="x"')
    assert each.root and each.op == "custom-call" and each.operands == ("%a", "%b")
    assert [shape.bytes for shape in each.shapes] == [12, 4, 5]
    assert [shape.moved for shape in each.shapes] == [0, 4, 5]
    assert instruction("}") is None and instruction("  // nothing") is None
    assert instruction("  %one = s32[] constant(17)").operands == ("17",)
    assert [shape.bytes for shape in shapes_of("(s4[8], f8e4m3fn[3], token[], u32[2]{0:S(2)})")] == [4, 3, 0, 8]


def test_an_endless_loop_is_named():
    text = LOOP.replace("constant(6)", "parameter(1)")
    with pytest.raises(ValueError, match="the loop with the condition %condition does not say how often it runs"):
        Program(text, MESH).operations()


def test_axes_of_a_mesh():
    assert MESH.between([0, 4]) == ("data",) and MESH.between([0, 1, 5]) == ("data", "fsdp")
    np.testing.assert_array_equal(MESH.places[5], [1, 1, 0, 0])
