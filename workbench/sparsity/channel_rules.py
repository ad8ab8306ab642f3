"""Channel rules: how an operation of an exported graph carries, ties or stops channels."""

import math
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from workbench.sparsity.channel_atoms import Atoms, Value

# read no values: checks, and tensors that take only their shape and type from another
_READ_NOTHING = re.compile("_assert.*|sym_constrain_.*|new_.*|(zeros|ones|full|empty)_like")


class Rules:
    """One pass over a graph that gives every node its Value and records the ties."""

    def __init__(
        self,
        atoms: Atoms,
        values: dict[fx.Node, Any],
        find_rule: Callable[[str, fx.Node], Callable[["Rules", dict[str, Any]], Any] | None],
    ) -> None:
        """`values` holds the placeholders' values; `find_rule` gives the rule of an operation."""
        self.atoms, self.values, self._find_rule = atoms, values, find_rule
        self.node: fx.Node
        self._stopped: dict[fx.Node, str] = {}

    def run(self, node: fx.Node) -> None:
        """Set the value of one node; what has no rule stops the channels that reach it."""
        self.node = node
        if node.op == "output":
            self.stop(*self.inputs(), reason="network output")
            return
        schema = getattr(node.target, "_schema", None)
        if schema is None and getattr(node.target, "__name__", "") == "getitem":
            self.values[node] = self.values[node.args[0]][node.args[1]]
            return
        name = schema.name.split("::")[-1] if schema else str(node.target)
        if schema and schema.is_mutable:
            name = name.removesuffix("_")
        rule = self._find_rule(name, node)
        if rule is None or (schema and schema.is_mutable and not self._may_mutate()):
            if not _READ_NOTHING.fullmatch(name):
                self.stop(*self.inputs(), reason=f"{name} has no channel rule here")
            self.values[node] = self.unmoved()
        else:
            self.values[node] = rule(self, self._args())

    # the arguments of the node

    def _args(self) -> dict[str, Any]:
        """Argument name -> value, defaults included; tensors as Value."""
        arguments = self.node.target._schema.arguments
        given = {a.name: v for a, v in zip(arguments, self.node.args, strict=False)}
        given |= self.node.kwargs
        named = {a.name: given.get(a.name, a.default_value) for a in arguments}
        return fx.node.map_arg(named, lambda node: self.values[node])

    def inputs(self) -> list[Value]:
        """Values of all tensors that the node reads."""
        found = []
        for node in self.node.all_input_nodes:
            value = self.values[node]
            found += value if isinstance(value, list) else [value]
        return found

    def _may_mutate(self) -> bool:
        """Whether the result's value also holds for all of the tensor written to."""
        target = self.node.args[0]
        if not any(value.components for value in self.inputs()):
            return True
        return bool(self.values[target].components) and not _is_part(target)

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the node's results."""
        found = self.node.meta.get("val")
        found = found if isinstance(found, (list, tuple)) else [found]
        return [tuple(getattr(tensor, "shape", ())) for tensor in found]

    def result(self, values: list[Value]) -> Any:
        """One Value, or a list for an operation that returns several."""
        return values if isinstance(self.node.meta.get("val"), (list, tuple)) else values[0]

    def unmoved(self) -> Any:
        """A result that stays as it is when channels trade places."""
        return self.result([Value(shape) for shape in self.shapes()])

    # ties

    def freeze(self, atoms: Tensor | None, reason: str) -> None:
        """These atoms keep their places because of this node."""
        if atoms is not None:
            stack = list(self.node.meta.get("nn_module_stack", {}).values())
            where = f" in {stack[-1][0] or 'the model'}" if stack else ""
            self._stopped.setdefault(self.node, f"{reason} (node {self.node.name}{where})")
            self.atoms.freeze(atoms, self._stopped[self.node])

    def freeze_with_operand(self, atoms: Tensor | None, operand: fx.Node) -> None:
        """These atoms keep their places as those of `operand`, for the reason found before it."""
        queue, seen = [operand], set()
        while queue and atoms is not None:
            node = queue.pop(0)
            if node in self._stopped:
                self.atoms.freeze(atoms, self._stopped[node])
                return
            seen.add(node)
            queue += [before for before in node.all_input_nodes if before not in seen]
        self.freeze(atoms, "network input")

    def stop(self, *values: Value | None, reason: str) -> None:
        """Freeze all that the values hold."""
        for value in values:
            for component in value.components if value else ():
                self.freeze(component, reason)

    def along(self, value: Value, axis: int) -> Tensor | None:
        """Atoms along one axis, tied over the other axes; None if the value has none there."""
        axis %= len(value.shape)
        found = None
        for component in value.components:
            if axis in axes_of(component):
                rows = component.movedim(axis, -1).reshape(-1, component.shape[axis])
                found = rows[0]
                for row in rows[1:]:
                    found = self.atoms.join(found, row)
            else:
                self.freeze(component, f"channels that are not on axis {axis}")
        return found

    def join(self, a: Tensor | None, b: Tensor | None, reason: str) -> Tensor | None:
        """Tie two rows of atoms; if one side is missing, the other keeps its order."""
        if a is not None and b is not None and a.shape == b.shape:
            return self.atoms.join(a, b)
        self.freeze(a, reason)
        self.freeze(b, reason)
        return None

    def symmetric(self, value: Value, axes: list[int]) -> None:
        """Only channels at the same place on the other axes may trade."""
        for component in value.components:
            own = axes_of(component)
            if set(own) & set(axes):
                rest = [axis for axis in own if axis not in axes]
                rows = component.movedim(rest, list(range(len(rest))))
                count = math.prod(rows.shape[: len(rest)])
                for place, row in enumerate(rows.reshape(count, -1)):
                    self.atoms.mark(row, (self.node.name, place))

    def elementwise(self, values: list[Value], shape: tuple[int, ...]) -> Value:
        """Channels at the same place are tied; values that differ by channel stop them."""
        values = [_aligned(value, len(shape)) for value in values]
        if len(values) == 1 and values[0].shape == shape:
            return values[0]
        moving = one_component(self, values)
        fixed = [v for v in values if not any(v is value for value, _ in moving)]
        widest = max((axes_of(c) for _, c in moving), key=len, default=[])
        tied = None
        for value, component in moving:
            if axes_of(component) != widest:
                self.freeze(component, "joined with channels on another axis")
                fixed.append(value)
            else:
                tied = component if tied is None else self.atoms.join(tied, component)
        if tied is None:
            return Value(shape)
        if any(value.shape[axis] > 1 for value in fixed for axis in widest):
            self.freeze(tied, "joined with values that differ by channel")
        return Value(shape, (tied,))


def axes_of(component: Tensor) -> list[int]:
    """Axes along which a component varies."""
    return [axis for axis, size in enumerate(component.shape) if size > 1]


def one_component(rules: Rules, values: list[Value]) -> list[tuple[Value, Tensor]]:
    """Values that move, each with one component; a parameter takes the axis the others move on."""
    wanted = [axes_of(v.components[0]) for v in values if len(v.components) == 1]
    chosen = []
    for value in values:
        own = value.components
        if len(own) > 1:
            own = [component for component in own if axes_of(component) in wanted]
        for component in value.components:
            if len(own) != 1 or component is not own[0]:
                rules.freeze(component, "no operand moves along this axis alone")
        if len(own) == 1:
            chosen.append((value, own[0]))
    return chosen


def _is_part(node: fx.Node) -> bool:
    """Whether a node is a view of a larger (or smaller) tensor, over any number of views."""
    returned = getattr(getattr(node.target, "_schema", None), "returns", ())
    if not any(r.alias_info and not r.alias_info.is_write for r in returned):
        return getattr(node.target, "__name__", "") == "getitem"  # a chunk, a split
    base = node.args[0]
    sizes = [math.prod(n.meta["val"].shape) for n in (node, base)]
    return sizes[0] != sizes[1] or _is_part(base)


def _aligned(value: Value, rank: int) -> Value:
    """The value with leading axes of size 1, as broadcasting adds them."""
    lead = (1,) * (rank - len(value.shape))
    components = tuple(component.reshape(*lead, *component.shape) for component in value.components)
    return Value((*lead, *value.shape), components)
