"""Names, groups and rows of the watched tensors, and how they follow a living optimizer."""

import torch
from torch import nn

from gradwatch.watching.gates import Gates
from gradwatch.watching.layout import Layout, Parameters
from gradwatch.watching.names import Names, unwrap_model


def layout_of(model: nn.Module, optimizer: torch.optim.Optimizer, **options: object) -> Layout:
    layout = Layout(Names(model), optimizer, **options)  # type: ignore[arg-type]  # by keyword
    layout.refresh()
    return layout


def names(layout: Layout) -> list[str]:
    return [tensor.name for tensor in layout.tensors]


def test_names_are_the_models_own_whatever_is_wrapped_around_it() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    wrapped = torch.compile(nn.DataParallel(model), backend="eager")
    assert unwrap_model(wrapped) is model
    layout = layout_of(wrapped, torch.optim.SGD(model.parameters(), lr=0.1))
    assert names(layout) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [t.shape for t in layout.tensors] == [(3, 2), (3,), (1, 3), (1,)]
    assert {t.dtype for t in layout.tensors} == {"float32"}
    assert [t.group for t in layout.tensors] == ["0", "0", "2", "2"]


def test_without_a_model_names_come_from_the_optimizer_else_from_positions() -> None:
    model = nn.Linear(2, 1)
    named = torch.optim.SGD(model.named_parameters(), lr=0.1)
    bare = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias]}], lr=0.1)
    for optimizer, expected in [(named, ["weight", "bias"]), (bare, ["group0.0", "group1.0"])]:
        layout = Layout(Names(None), optimizer)
        layout.refresh()
        assert names(layout) == expected


def test_a_tied_parameter_has_one_row_one_name_and_its_aliases() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    known = Names(model)
    layout = Layout(known, torch.optim.SGD(model.parameters(), lr=0.1))
    layout.refresh()
    assert names(layout) == ["embed.weight"]
    assert known.aliases == {"embed.weight": ["head.weight"]}


def test_a_frozen_parameter_appears_when_it_is_unfrozen_and_keeps_its_row_afterwards() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    layout = layout_of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert names(layout) == ["1.weight", "1.bias"]
    assert not layout.refresh()
    model[0].weight.requires_grad_(True)
    assert layout.refresh()
    assert names(layout) == ["1.weight", "1.bias", "0.weight"]
    model[0].weight.requires_grad_(False)
    assert not layout.refresh()
    assert names(layout) == ["1.weight", "1.bias", "0.weight"]


def test_added_layers_are_found_with_their_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layout = layout_of(model, optimizer)
    model.append(nn.Linear(2, 1))
    optimizer.add_param_group({"params": model[1].parameters()})
    assert layout.refresh()
    assert names(layout) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_a_replaced_parameter_of_the_same_shape_takes_the_old_row() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layout = layout_of(model, optimizer)
    model.weight = nn.Parameter(torch.zeros(1, 2))
    optimizer.param_groups[0]["params"][0] = model.weight
    assert not layout.refresh()
    assert names(layout) == ["weight", "bias"]
    assert layout.parameters[0] is model.weight


def test_a_replaced_parameter_of_another_shape_is_another_tensor() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layout = layout_of(model, optimizer)
    model.weight = nn.Parameter(torch.zeros(4, 2))
    optimizer.param_groups[0]["params"][0] = model.weight
    assert layout.refresh()
    assert names(layout) == ["weight", "bias", "weight~2"]
    assert layout.gradients() == [None, None, None]


def test_include_exclude_and_groups_go_by_pattern() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})
    layout = layout_of(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        include=["*coder.*"],
        exclude=["decoder.bias"],
        groups={"*.bias": "biases", "encoder.*": "enc"},
    )
    assert {t.name: t.group for t in layout.tensors} == {
        "encoder.weight": "enc",
        "encoder.bias": "biases",
        "decoder.weight": "decoder",
    }


def test_two_parameters_without_names_of_their_own_never_share_a_row() -> None:
    first, second = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=0.1)
    optimizer.param_groups[0]["param_names"] = ["w"]
    optimizer.param_groups[1]["param_names"] = ["w"]
    layout = Layout(Names(None), optimizer)
    layout.refresh()
    assert names(layout) == ["w", "w~2"]


def test_a_model_alone_is_followed_like_an_optimizer() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    layout = layout_of(model, Parameters(model))  # type: ignore[arg-type]  # its stand-in
    model.append(nn.Linear(2, 1))
    assert layout.refresh()
    assert names(layout)[-1] == "1.bias"


def test_rows_follow_the_models_order_whatever_the_optimizers_groups() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD([{"params": biases}, {"params": weights}], lr=0.1)
    assert names(layout_of(model, optimizer)) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_the_gates_of_recurrent_weights_can_be_watched_as_tensors_of_their_own() -> None:
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(3, 5, bidirectional=True, proj_size=2),
            "gru": nn.GRU(4, 5, bias=False),
            "head": nn.Linear(5, 1),
        }
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layout = layout_of(model, optimizer, gates=Gates(model), groups={"*.forget": "forget gates"})
    shapes = {tensor.name: tensor.shape for tensor in layout.tensors}
    assert shapes["lstm.weight_hh_l0_reverse.cell"] == (5, 2)
    assert shapes["lstm.bias_ih_l0.output"] == (5,)
    assert shapes["lstm.weight_hr_l0"] == (2, 5)  # the projection has no gates
    assert shapes["gru.weight_ih_l0.reset"] == (5, 4)
    assert shapes["head.weight"] == (1, 5)
    assert sum(t.numel for t in layout.tensors) == sum(p.numel() for p in model.parameters())
    assert {t.group for t in layout.tensors if t.name.endswith(".forget")} == {"forget gates"}
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    for tensor, grad, weight in zip(
        layout.tensors, layout.gradients(), layout.weights(), strict=True
    ):
        assert grad is not None
        assert tuple(grad.shape) == tuple(weight.shape) == tensor.shape
        grad.zero_()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
