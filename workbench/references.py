"""Whether what a spec refers to is there: data sets, weights, augmentations, builders, sizes."""

from workbench.admitted import augmentations, builders, minimum_sizes
from workbench.sections import Data, Model
from workbench.spec import Spec
from workbench.spec_errors import Origins, SpecError, Tree, origin, unknown


def check(spec: Spec, origins: Origins, catalog: Tree) -> None:
    """Raise SpecError for the first thing that a spec names and nobody has."""
    for name, phase in spec.phases.items():
        key = f"phases.{name}"
        for value, what, leaf in (
            (phase.data.name, "data set", "data.name"),
            (phase.weights, "weights", "weights"),
        ):
            if value and value not in catalog:
                raise unknown(origins, f"{key}.{leaf}", f"{what} {value!r}", value, catalog)
        kind = catalog[phase.data.name]["kind"]
        _check_augment(phase.data, kind, f"{key}.data.augment", origins)
        own = f"{key}.model" if phase.model else "model"
        _check_builder(spec.model_of(name), own, origins)
        _check_size(spec, name, origins)


def _check_augment(data: Data, kind: str, key: str, origins: Origins) -> None:
    allowed = augmentations(kind)
    for each in data.augment or ():
        if each.name not in allowed:
            what = f"augmentation {each.name!r} of {data.name}"
            raise unknown(origins, key, what, each.name, allowed)
        for name in each.args:
            if name not in allowed[each.name]:
                what = f"argument {name!r} of {each.name}"
                raise unknown(origins, key, what, name, allowed[each.name], "allowed")


def _check_builder(model: Model, key: str, origins: Origins) -> None:
    allowed = builders()
    if model.build not in allowed:
        what = f"builder {model.build!r}"
        raise unknown(origins, f"{key}.build", what, model.build, allowed)
    for name in model.args:
        if name not in allowed[model.build]:
            what = f"argument of {model.build}"
            here = f"{key}.args.{name}"
            raise unknown(origins, here, what, name, allowed[model.build], "allowed")


def _check_size(spec: Spec, phase: str, origins: Origins) -> None:
    data, builder = spec.phases[phase].data, spec.model_of(phase).build
    least = minimum_sizes().get(builder, 1)
    if data.image_size and max(data.image_size, data.minimum_size or 1) < least:
        key = f"phases.{phase}.data.image_size"
        raise SpecError(
            f"experiments/{origin(origins, key)}: {key}: {spec.title} ({builder}) takes images of "
            f"at least {least} pixels (given: {data.image_size}); raise it, or set "
            "data.minimum_size"
        )
