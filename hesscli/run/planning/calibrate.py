"""How long a gradient and a product take here: the one part of a plan that loads weights."""

import time

from hesscli.curvature.choice import choose_operator
from hesscli.events import Finished, OnEvent, Started
from hesscli.recipe import Recipe
from hesscli.run.environment import exact_arithmetic, keep_freed_pages
from hesscli.run.faults import as_hess_error
from hesscli.run.observed import ObservedOperator
from hesscli.run.planning.document import Calibration, Plan
from hesscli.run.setup import build_subject


def calibrated(plan: Plan, recipe: Recipe, *, on_event: OnEvent) -> Plan:
    """The plan with the seconds of all products of each way, from one gradient and one product on the whole slice.

    The first of each warms up and is not counted. What was not measured is the gradient's time by the product's cost.
    Raises what loading raises, and DoesNotFitError.
    """
    exact_arithmetic()
    keep_freed_pages()
    with as_hess_error():
        subject = build_subject(recipe, on_event=on_event)
        on_event(Started("calibrate", None))
        risk = subject.risk
        choice = choose_operator(
            risk, kind=recipe.operator.kind, product=recipe.operator.product, seed=recipe.estimator.seed
        )
        risk.gradient()
        begun = time.perf_counter()
        risk.space.norm(risk.gradient())  # waits for the device
        gradient = time.perf_counter() - begun
        operator = ObservedOperator(choice.operator, risk.space, log=None)
        v = risk.space.random("rademacher", seed=recipe.estimator.seed, index=0)
        operator.matvec(v)
        operator.seconds = 0.0
        operator.matvec(v)
        on_event(Finished("calibrate"))
    found = Calibration(gradient_seconds=gradient, product=choice.product, matvec_seconds=operator.seconds)
    ways = [
        way.model_copy(update={"seconds": way.matvecs * way.gradients * gradient}) if way.placement == "single" else way
        for way in plan.ways
    ]
    return plan.model_copy(update={"ways": ways, "calibration": found})
