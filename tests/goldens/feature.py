"""Replays of the methods that match feature maps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from goldens.replay import Case, gradients, replays
from limbeck.anatomy import Anatomy
from limbeck.functional.feature_maps import pool_to_smaller
from limbeck.methods.base import Method, Setup, build_method
from limbeck.methods.exit_heads import ConvolutionExit
from limbeck.schedules import Progress, weight_at
from limbeck.signals import Batch, Signals, as_term

Results = dict[str, Any]


def _maps(case: Case, stem: str, requires_grad: bool = False) -> dict[str, Tensor]:
    """Returns the maps ``<stem>0``, ``<stem>1`` ... or the single map ``<stem>``, by name."""
    return case.numbered(stem, requires_grad) or {stem: case.input(stem, requires_grad)}


Sides = tuple[dict[str, Tensor], dict[str, Tensor], Signals, Signals]


def _sides(case: Case, group: str = "stages", teacher_stem: str = "teacher_feat") -> Sides:
    """Returns the maps of student and teacher by name, and both as signals."""
    ours, theirs = _maps(case, "student_feat", requires_grad=True), _maps(case, teacher_stem)
    rows = next(iter(ours.values())).shape[0]
    student, teacher = (_signals({group: list(maps.values())}, rows) for maps in (ours, theirs))
    return ours, theirs, student, teacher


def _signals(features: Mapping[str, Sequence[Tensor]], rows: int, classes: int = 2) -> Signals:
    maps = {group: tuple(tensors) for group, tensors in features.items()}
    return Signals(logits=torch.zeros(rows, classes, dtype=torch.float64), features=maps)


def _batch(rows: int) -> Batch:
    return Batch(index=torch.arange(rows), labels=torch.zeros(rows, dtype=torch.long))


def _built(
    name: str, student: Signals, teacher: Signals, models: Mapping[str, nn.Module] | None = None, **config: Any
) -> Method:
    """Returns the method in train mode and float64, fitted to the signals."""
    method = build_method(name, **config)
    signals = {"student": student.detach(), "teacher": teacher.detach()}
    method.build(Setup(signals=signals, models=models or {}, taps={"student": {"stages": ["map"]}}))
    return method.double().train()


def _norm_eps(method: nn.Module, case: Case) -> None:
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = float(case.config.get("bn_eps", module.eps))


def _loss(method: Method, student: Signals, teacher: Signals, term: str) -> Tensor:
    rows = next(iter(student.features.values()))[0].shape[0]
    return as_term(method(_batch(rows), student, teacher)[term]).mean()


def _weighted(method: Method, case: Case, term: str, loss: Tensor) -> Tensor:
    """The loss at the file's weight, which should be the published default unless the file has another."""
    default = weight_at(method.weights[term], Progress(0, 1, 1))
    return loss * case.config.get("feat_weight", default)


def _stage_method(case: Case, name: str, term: str, **config: Any) -> Results:
    """Replays a method without parameters on one map or several."""
    ours, _, student, teacher = _sides(case)
    method = _built(name, student, teacher, **config)
    loss = _loss(method, student, teacher, term)
    return {"out.loss": loss, "out.loss_weighted": _weighted(method, case, term, loss), **gradients(loss, ours)}


@replays("at")
def attention_transfer(case: Case) -> Results:
    """Sum over the stages."""
    return _stage_method(case, "at", "at", p=case.config.get("p", 2))


@replays("nst")
def neuron_selectivity(case: Case) -> Results:
    """The kernel is written as ``poly d=2 c=0``."""
    text = str(case.config.get("kernel", "poly d=2 c=0"))
    found = {key: float(value) for key, value in re.findall(r"\b([dc])\s*=\s*([\d.]+)", text)}
    kernel = next((k for k in ("linear", "gaussian") if k in text.lower()), "polynomial")
    return _stage_method(case, "nst", "nst", kernel=kernel, degree=int(found.get("d", 2)), offset=found.get("c", 0.0))


@replays("fsp")
def flow(case: Case) -> Results:
    """The first map is the stem's; each pair of neighbours also alone."""
    ours, theirs = _maps(case, "student_feat", requires_grad=True), _maps(case, "teacher_feat")

    def loss_of(first: int, last: int) -> Tensor:
        sides = []
        for maps in (list(ours.values()), list(theirs.values())):
            chosen = maps[first : last + 1]
            sides.append(_signals({"stem": chosen[:1], "stages": chosen[1:]}, chosen[0].shape[0]))
        return _loss(_built("fsp", *sides), *sides, "fsp")

    loss = loss_of(0, len(ours) - 1)
    pairs = {f"out.loss_pair{i}": loss_of(i, i + 1) for i in range(len(ours) - 1)}
    weight = case.config.get("feat_weight", 50.0)
    return {"out.loss": loss, "out.loss_weighted": weight * loss, **pairs, **gradients(loss, ours)}


@replays("fitnet")
def hint(case: Case) -> Results:
    """One map a side; the regressor is ``conv``, then ``bn``."""
    ours, _, student, teacher = _sides(case)
    method = _built("fitnet", student, teacher, hint_stage=1)
    _norm_eps(method, case)
    names = {n: n.replace("conv.", "regressor.0.").replace("bn.", "regressor.1.") for n in case.input_names()}
    parameters = case.load_into(method, {n: target for n, target in names.items() if target.startswith("regressor.")})
    loss = _loss(method, student, teacher, "hint")
    results = gradients(loss, {**ours, **parameters})
    return {"out.loss": loss, "out.loss_weighted": _weighted(method, case, "hint", loss), **results}


@replays("vid")
def information(case: Case) -> Results:
    """Stages are numbered where there is more than one."""
    ours, theirs, student, teacher = _sides(case)
    config = {"init_variance": case.config.get("init_pred_var", 5.0), "min_variance": case.config.get("eps", 1e-5)}
    method = _built("vid", student, teacher, **config)
    parameters = case.load_into(
        method, {"log_scale": "stages.0.log_scale"}
        | {f"regressor{i}.weight": f"stages.0.mean.{i}.weight" for i in (0, 2, 4)},
    )  # fmt: skip
    loss = _loss(method, student, teacher, "vid")
    stage = method.get_submodule("stages.0")
    return {
        "out.loss": loss,
        "out.loss_weighted": _weighted(method, case, "vid", loss),
        "out.pred_mean": stage.mean(pool_to_smaller(next(iter(ours.values())), next(iter(theirs.values())))[0]),
        "out.pred_var": stage.variance(),
        **gradients(loss, {**ours, **parameters}),
    }


class _Normalised(nn.Module):
    """A teacher that consists of the normalisations OFD reads."""

    def __init__(self, case: Case, stages: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList()
        for i in range(stages):
            norm = nn.BatchNorm2d(len(case.input(f"teacher_bn{i}.weight")))
            case.load_into(norm, {f"teacher_bn{i}.{part}": part for part in ("weight", "bias")})
            self.norms.append(norm)
        self.anatomy = Anatomy(norms=tuple(f"norms.{i}" for i in range(stages)))


@replays("ofd")
def overhaul(case: Case) -> Results:
    """Connectors are ``connector.<stage>.<layer>``."""
    ours, theirs, student, teacher = _sides(case, "preacts", "teacher_preact")
    model = _Normalised(case, len(theirs))
    method = _built("ofd", student, teacher, {"teacher": model}, kernel_size=case.config.get("kernel_size", 1))
    _norm_eps(method, case)
    names = {n: n.replace("connector.", "connectors.") for n in case.input_names("connector.")}
    parameters = case.load_into(method, names)
    loss = _loss(method, student, teacher, "ofd")
    margins = {f"out.margin{i}": margin for i, margin in enumerate(method.margins())}
    weighted = _weighted(method, case, "ofd", loss)
    return {"out.loss": loss, "out.loss_weighted": weighted, **margins, **gradients(loss, {**ours, **parameters})}


_FUSION_PARTS = {"conv1": "entry", "conv2": "exit"}


def _fusion_name(name: str, levels: int) -> str:
    """Turns ``abf.<from deep>.<part>`` into our name: ``fusions.<from shallow>.<part>``."""
    _, number, part, *rest = name.split(".")
    # The attention convolution is alone in its block, so its layer number goes.
    tail = ["gate", *rest[1:]] if part == "att_conv" else [_FUSION_PARTS[part], *rest]
    return ".".join(["fusions", str(levels - 1 - int(number)), *tail])


@replays("reviewkd")
def review(case: Case) -> Results:
    """The loss of the file includes the weight at its epoch, counted from 1."""
    ours, theirs = _maps(case, "student_feat", requires_grad=True), _maps(case, "teacher_preact")
    pooled = case.input("student_pooled", requires_grad=True)
    student = _signals({"stages": list(ours.values()), "pooled": [pooled]}, len(pooled))
    teacher = _signals({"preacts": list(theirs.values()), "pooled": [case.input("teacher_pooled")]}, len(pooled))
    config = case.config
    method = _built(
        "reviewkd", student, teacher, weight=config.get("weight", 5.0),
        warmup_epochs=config.get("warmup_epochs", 20), mid_channels=config.get("mid_channel"),
    )  # fmt: skip
    _norm_eps(method, case)
    parameters = case.load_into(method, {n: _fusion_name(n, len(ours) + 1) for n in case.input_names("abf.")})
    unweighted = _loss(method, student, teacher, "review")
    progress = Progress(int(config.get("epoch", 10**6)) - 1, 1, 240)
    loss = weight_at(method.weights["review"], progress) * unweighted
    outputs = {f"out.review_out{i}": output for i, output in enumerate(method.review(student))}
    leaves = {**ours, "student_pooled": pooled, **parameters}
    return {"out.loss": loss, "out.loss_unweighted": unweighted, **outputs, **gradients(loss, leaves)}


class _Classified(nn.Module):
    """A teacher that consists of the classifier SimKD reuses."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        classes, width = case.input("cls_t.weight").shape
        self.head = nn.Linear(width, classes).double()
        case.load_into(self.head, {"cls_t.weight": "weight", "cls_t.bias": "bias"})
        self.anatomy = Anatomy(head="head")


@replays("simkd")
def reused_classifier(case: Case) -> Results:
    """The projector is ``transfer.<layer>``."""
    ours = {"student_feat": case.input("student_feat", requires_grad=True)}
    theirs = case.input("teacher_feat")
    student = _signals({"stages": list(ours.values())}, len(theirs))
    teacher = _signals({"stages": [theirs], "pooled": [theirs.mean((2, 3))]}, len(theirs))
    models = {"teacher": _Classified(case)}
    method = _built("simkd", student, teacher, models, factor=case.config.get("factor", 2))
    _norm_eps(method, case)
    names = {n: n.replace("transfer.", "classifier.projector.") for n in case.input_names("transfer.")}
    parameters = case.load_into(method, names)
    loss = _loss(method, student, teacher, "simkd")
    classifier = method.get_submodule("classifier")
    return {
        "out.loss": loss,
        "out.student_logits": classifier(ours["student_feat"]),
        "out.trans_feat_s": classifier.projected(ours["student_feat"]),
        **gradients(loss, {**ours, **parameters}),
    }


@replays("nd-loss")
def norm_and_direction(case: Case) -> Results:
    """Embeddings have one width, so no projector stands between; class means are given."""
    ours = {"student_emb": case.input("student_emb", requires_grad=True)}
    means, labels = case.input("class_means"), case.input("labels")
    sides = [
        Signals(logits=torch.zeros(len(labels), len(means), dtype=torch.float64), features={"pooled": (embedding,)})
        for embedding in (ours["student_emb"], case.input("teacher_emb"))
    ]
    method = _built("nd_loss", *sides, weight=case.config["nd_loss_factor"])
    case.load_into(method, {"class_means": "class_means"})
    rows = as_term(method(Batch(index=torch.arange(len(labels)), labels=labels), *sides)["nd"]).values
    loss = weight_at(method.weights["nd"], Progress(0, 1, 1)) * rows.mean()
    lengths = [torch.linalg.vector_norm(side.feature("pooled"), dim=1) for side in sides]
    return {
        "out.loss": loss,
        "out.loss_rows": rows,
        "out.student_is_longer": lengths[0] > lengths[1],
        **gradients(loss, ours),
    }


@replays("ofa-kd")
def one_for_all(case: Case) -> Results:
    """Exits give the logits of the file; a map stands for one that a separable convolution and a classifier read."""
    config, labels, theirs = case.config, case.input("labels"), case.input("teacher_logits")
    final = case.input("student_logits", requires_grad=True)
    leaves = {"student_logits": final, **case.numbered("stage_logits", requires_grad=True)}
    exits: list[nn.Module] = [nn.Identity() for _ in range(len(leaves) - 1)]
    features = list(leaves.values())[1:]
    for name in [n for n in case.input_names() if _is_map(case.input(n), len(labels))]:
        leaves[name] = case.input(name, requires_grad=True)
        head, parameters = _exit_of(case, name)
        leaves.update(parameters)
        exits.append(head)
        features.append(leaves[name])
    method = build_method(
        "ofa_kd", exponents=_exponents(config["eps"], len(exits)), temperature=config["temperature"],
        label_smoothing=config.get("label_smoothing", 0.0),
    )  # fmt: skip
    # The file gives what the exits say, so the method's own do not stand between.
    shaped = [torch.zeros(len(labels), 4, 2**n, 2**n) for n in range(len(exits), 0, -1)]
    student = Signals(logits=final.detach().float(), features={"stages": tuple(shaped)})
    method.build(Setup(signals={"student": student, "teacher": Signals(logits=theirs)}, models={}))
    method.exits = nn.ModuleList(exits)
    method.double().train()
    batch = Batch(index=torch.arange(len(labels)), labels=labels)
    sides = Signals(logits=final, features={"stages": tuple(features)}), Signals(logits=theirs)
    terms = {name: as_term(value).mean() for name, value in method(batch, *sides).items()}
    parts = zip(("gt", "kd", "ofa"), terms.values())
    loss = torch.stack([config.get(f"{name}_loss_weight", 1.0) * value for name, value in parts]).sum()
    said = [head(tensor) for head, tensor in zip(exits, features)]
    each = method.losses([*said, final], theirs, labels)
    return {
        "out.loss_total": loss,
        "out.loss_gt": terms["ce"],
        "out.loss_kd": terms["kd"],
        **{f"out.loss_stage{i}": value.mean() for i, value in enumerate(each[:-1])},
        **{f"out.stage_logits{i}": value for i, value in enumerate(said)},
        **gradients(loss, leaves),
    }


def _exponents(given: Any, exits: int) -> tuple[float, ...]:
    """One exponent for all, or those of the exits and of the final logits."""
    values = tuple(float(e) for e in given) if isinstance(given, list) else (float(given),)
    return values if len(values) in (1, exits + 1) else values[:1]


_GIVEN = re.compile(r"(student|teacher|stage)_logits|labels|.*(running_|tracked)")
_BIAS = re.compile(r"bias|beta|(^|[._])b\d*($|[._])")


def _is_map(tensor: Tensor, rows: int) -> bool:
    """Whether these are maps of the batch, and not the kernels of pointwise or depthwise convolutions."""
    return tensor.dim() == 4 and len(tensor) == rows and tensor.shape[1] > 1 and tensor.shape[2:].numel() > 1


def _exit_of(case: Case, source: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """An exit with the projector of the file; what a parameter is follows from its shape and its place in the file."""
    names = [n for n in case.input_names() if n != source and not _GIVEN.match(n)]
    classes, width = next(case.input(n).shape for n in names if case.input(n).dim() == 2)
    head = ConvolutionExit(case.input(source).shape[1], width, classes, 1)
    _norm_eps(head, case)
    free = [(target, tuple(p.shape), target.endswith("bias")) for target, p in head.named_parameters()]
    slots: dict[str, str] = {}
    for name in names:
        fitting = [slot for slot in free if slot[1] == tuple(case.input(name).shape)]
        # Names tell shifts from scales; where they do not, the order of the module's own parameters does.
        same = [slot for slot in fitting if len(slot[1]) > 1 or slot[2] == bool(_BIAS.search(name))]
        for found in (same or fitting)[:1]:
            free.remove(found)
            slots[name] = found[0]
    return head, case.load_into(head, slots)
