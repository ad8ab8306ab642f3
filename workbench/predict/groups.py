"""What lies between products: tensors, passes over them, and groups that one kernel computes."""

from dataclasses import dataclass, field

from workbench.predict.shapes import Convolution, Product

NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
         "batch_norm", "_batch_norm_no_update")  # fmt: skip
# what fusion.py of sparse24 lets a packed layer compute behind its sums
EPILOGUES = (*NORMS, "relu", "relu_", "gelu", "add", "add_")
INVISIBLE = ("dropout", "native_dropout", "clone", "_to_copy", "lift_fresh", "detach")


@dataclass
class Node:
    """A tensor as it is between two operations: elements, whether real numbers, an image."""

    size: int
    real: bool
    image: bool
    level: int = 0  # products on the longest way to it
    maker: "Product | Pass | Attention | None" = field(default=None, repr=False)
    readers: int = 0


@dataclass
class Pass:
    """An operation that is no product: what it reads and writes."""

    name: str
    reads: list[Node]
    writes: list[Node]
    level: int = 0


@dataclass
class Attention:
    """One call of scaled_dot_product_attention: its operations and what it reads and writes."""

    flops: float
    reads: list[Node]
    writes: list[Node]


@dataclass
class Group:
    """Passes between products that a compiler computes in one kernel.

    `behind` is the layer whose epilogue can hold all of it, then `reads` are the residuals.
    """

    names: list[str]
    reads: list[Node]
    writes: list[Node]
    behind: Product | None = None
    folded: bool = False  # nothing but batch norms behind a convolution


def grouped(passes: list[Pass]) -> list[Group]:
    """The passes that depend on each other without a product in between, each set as one group."""
    owner = {id(each): place for place, each in enumerate(passes)}

    def root(place: int) -> int:
        while owner[id(passes[place])] != place:
            place = owner[id(passes[place])]
        return place

    for place, each in enumerate(passes):
        for node in each.reads:
            maker = node.maker
            if isinstance(maker, Pass) and maker.level == each.level:
                owner[id(passes[root(place)])] = root(owner[id(maker)])
    members: dict[int, list[Pass]] = {}
    for place, each in enumerate(passes):
        members.setdefault(root(place), []).append(each)
    return [_group(found) for found in members.values()]


def _group(members: list[Pass]) -> Group:
    written = {id(node) for each in members for node in each.writes}
    reads = {id(n): n for each in members for n in each.reads if id(n) not in written}
    inside: dict[int, int] = {}
    for each in members:
        for node in each.reads:
            inside[id(node)] = inside.get(id(node), 0) + 1
    writes = {id(n): n for each in members for n in each.writes if n.readers > inside.get(id(n), 0)}
    names = [each.name for each in members if each.name not in INVISIBLE]
    group = Group(names, list(reads.values()), list(writes.values()))
    _place(group)
    return group


def _place(group: Group) -> None:
    """Find the layer whose epilogue can compute the group, and what else that then reads."""
    largest = max((node.size for node in group.writes), default=0)
    wide = [node for node in group.reads if node.size >= largest]
    layers = [node for node in wide if isinstance(node.maker, Product) and node.maker.module]
    if not layers or not set(group.names) <= set(EPILOGUES) or len(wide) > 2:
        return
    last = max(layers, key=lambda node: node.level)
    if last.readers > 1 or last.size != largest:
        return
    group.folded = set(group.names) <= set(NORMS) and isinstance(last.maker.shape, Convolution)
    group.behind = last.maker
    group.reads = [node for node in wide if node is not last] if not group.folded else []
