"""Drives a server with the generated Python client, and holds the examples of the OpenAPI document to their schemas.

clients.py document FILE
clients.py drive OPEN KEYED KEY     prints how many calls passed
"""

import json
import sys
import time
from http import HTTPStatus
from typing import Any, TypeVar


def document(path: str) -> None:
    from jsonschema import Draft202012Validator, FormatChecker
    from openapi_spec_validator import validate

    with open(path, encoding="utf-8") as file:
        spec: dict[str, Any] = json.load(file)
    validate(spec)
    count = 0

    def check(at: str, schema: Any, example: Any) -> None:
        nonlocal count
        rooted = {"components": spec["components"], **schema}
        # The checker ignores formats of bytes and sized numbers and checks all others.
        errors = list(Draft202012Validator(rooted, format_checker=FormatChecker()).iter_errors(example))
        assert not errors, f"{at}: {errors[0].message}"
        count += 1

    def walk(at: str, value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("schema"), dict) and "example" in value:
                check(at, value["schema"], value["example"])
            for key, inner in value.items():
                if key not in ("example", "examples"):
                    walk(f"{at}/{key}", inner)
        elif isinstance(value, list):
            for inner in value:
                walk(at, inner)

    walk("", spec)
    for name, schema in spec["components"]["schemas"].items():
        for example in schema.get("examples", []):
            check(name, schema, example)
    assert count > 50, count
    print(f"document: valid, {count} examples fit their schemas")


T = TypeVar("T")
calls = 0


def got(kind: type[T], answer: Any, status: int = 200) -> T:
    """What a call gave, if it is of that type and status, and carries what each answer carries."""
    global calls
    assert answer.status_code == HTTPStatus(status), (answer.status_code, answer.content)
    assert answer.headers["x-request-id"], answer.headers
    assert isinstance(answer.parsed, kind), answer.parsed
    calls += 1
    return answer.parsed


def drive(open_url: str, keyed_url: str, key: str) -> None:
    from tercile_client import AuthenticatedClient, Client
    from tercile_client.api.health import get_greeting, get_liveness, get_metrics, get_readiness, get_status
    from tercile_client.api.predictions import (
        cluster_by_discount,
        cluster_by_price_rating,
        cluster_by_rating_count,
        predict,
        predict_price_rating,
        score_price_rating,
    )
    from tercile_client.api.segments import (
        get_k_report,
        get_model,
        get_points,
        get_segmentation,
        list_models,
        list_segmentations,
        list_unreadable,
    )
    from tercile_client.api.sql import run_sql
    from tercile_client.api.training import get_training, start_training
    from tercile_client.models import (
        DiscountRow,
        FitMode,
        Greeting,
        Health,
        HealthStatus,
        Job,
        JobState,
        KReport,
        Language,
        Model,
        PointSample,
        PriceRatingRecord,
        PriceRatingRow,
        PriceRatingValues,
        Problem,
        RatingCountRow,
        Row,
        SegmentationInfo,
        Statement,
        StatementParams,
        Status,
    )
    from tercile_client.types import Unset

    global calls
    # Without keys on loopback; the generator does not support optional authentication.
    client = AuthenticatedClient(base_url=open_url, token="none", raise_on_unexpected_status=True, timeout=None)
    # Status.
    assert got(Greeting, get_greeting.sync_detailed(client=client)).message == "Big Data API is running."
    assert got(Health, get_liveness.sync_detailed(client=client)).status is HealthStatus.LIVE
    assert got(Health, get_readiness.sync_detailed(client=client)).status is HealthStatus.READY
    status = got(Status, get_status.sync_detailed(client=client))
    assert status.records == 1465 and status.ready and status.now.tzinfo is not None
    assert "tercile_ready 1" in got(str, get_metrics.sync_detailed(client=client))
    # Lists.
    names = [one.name for one in got(list, list_segmentations.sync_detailed(client=client))]
    assert names == ["price_rating", "rating_count", "discount"], names
    for name in names:
        info = got(SegmentationInfo, get_segmentation.sync_detailed(name, client=client))
        assert info.k == 3 and [one.version for one in info.slices] == [1, 2, 3]
        assert [one.slice_ for one in got(list, list_models.sync_detailed(name, client=client))] == [1, 2, 3]
    answer = get_model.sync_detailed("price_rating", 3, client=client)
    model = got(Model, answer)
    assert sum(cluster.size for cluster in model.clusters) == model.rows and model.receipt.n == 1465
    assert answer.headers["model-version"] == "3"
    known = get_model.sync_detailed("price_rating", 3, client=client, if_none_match=answer.headers["etag"])
    got(type(None), known, 304)
    assert known.content == b"" and known.headers["etag"] == answer.headers["etag"]
    points = got(PointSample, get_points.sync_detailed("discount", client=client, model=1))
    assert len(points.points) == 489 and points.slice_ == 1
    report = got(KReport, get_k_report.sync_detailed("discount", client=client))
    assert not isinstance(report.suggestion, Unset) and report.suggestion.recommended == 3
    assert got(list, list_unreadable.sync_detailed(client=client, limit=5)) == []
    # Predictions, in both languages.
    for lang, price, rating, discount in [
        (Language.EN, "Low Price, High Rating", "High Rating, Low Reviews", "High Discount"),
        (Language.ID, "Harga Rendah, Rating Tinggi", "Rating Tinggi, Sedikit Ulasan", "Diskon Tinggi"),
    ]:
        prices = [PriceRatingRow(discounted_price=300, rating=4.5)]
        first = got(list, cluster_by_price_rating.sync_detailed(client=client, body=prices, lang=lang))[0]
        assert (first.description, first.features.discounted_price) == (price, 300.0), first
        assert first.features.prediction == first.cluster and first.version == 3
        counts = [RatingCountRow(rating=4.8, rating_count=20000)]
        second = got(list, cluster_by_rating_count.sync_detailed(client=client, body=counts, lang=lang))[0]
        assert second.description == rating, second
        discounts = [DiscountRow(discount_percentage=64)]
        third = got(list, cluster_by_discount.sync_detailed(client=client, body=discounts, lang=lang))[0]
        assert third.description == discount, third
        for slice_ in 1, 2, 3:
            some = got(list, cluster_by_discount.sync_detailed(client=client, body=discounts, lang=lang, model=slice_))
            assert some[0].model == slice_
    rows = [PriceRatingRow(discounted_price=price, rating=4) for price in (1, 50, 1000)]
    own = got(list, cluster_by_price_rating.sync_detailed(client=client, body=rows, fit=FitMode.REQUEST))
    assert [one.cluster for one in own] == [0, 1, 2] and isinstance(own[0].version, Unset)
    row = Row.from_dict({"product_id": "B0001", "discounted_price": 300, "rating": 4.5})
    explained = got(list, predict.sync_detailed("price_rating", client=client, body=[row], explain=True))[0]
    assert explained.other.to_dict() == {"product_id": "B0001"} and len(explained.explanation.distances) == 3
    earlier = got(list, predict.sync_detailed("price_rating", client=client, body=[row], as_of=1))[0]
    assert (earlier.model, earlier.version) == (1, 1)
    # The types of a segmentation.
    values = [PriceRatingValues(discounted_price=300, rating=4.5)]
    typed = got(list, predict_price_rating.sync_detailed(client=client, body=values))[0]
    assert (typed.cluster, typed.features.rating) == (explained.cluster, 4.5), typed
    records = [PriceRatingRecord(discounted_price="₹300", rating="4.5"), PriceRatingRecord(discounted_price="?")]
    scored, missing = got(list, score_price_rating.sync_detailed(client=client, body=records))
    assert (scored.cluster, scored.features.discounted_price) == (explained.cluster, 300.0), scored
    assert missing.cluster is None and "missing" in missing.reason, missing
    # Problems as objects.
    bad = [PriceRatingRow(discounted_price=1, rating=1), PriceRatingRow(discounted_price=1, rating=None)]  # type: ignore
    problem = got(Problem, cluster_by_price_rating.sync_detailed(client=client, body=bad), 422)
    assert (problem.status, problem.index, problem.field) == (422, 1, "rating"), problem
    problem = got(Problem, get_points.sync_detailed("discount", client=client, model=4), 422)
    assert problem.field == "model", problem
    problem = got(Problem, get_model.sync_detailed("shoes", 3, client=client), 404)
    assert problem.title == "Not Found" and problem.field == "name"
    # SQL.
    least = StatementParams.from_dict({"least": 4.5})
    counted = got(list, run_sql.sync_detailed(client=client, body=Statement(
        sql="SELECT count(*) AS n FROM products WHERE rating >= $least", params=least)))
    assert counted[0]["n"] == 90, counted
    problem = got(Problem, run_sql.sync_detailed(client=client, body=Statement(sql="SELECT ratin FROM products")), 422)
    assert (problem.line, problem.column) == (1, 8), problem
    # A training, observed to its end.
    started = start_training.sync_detailed(client=client)
    job = got(Job, started, 202)
    assert started.headers["location"] == f"/api/train/{job.job}"
    for _ in range(300):
        if job.state is not JobState.RUNNING:
            break
        time.sleep(0.1)
        job = got(Job, get_training.sync_detailed(job.job, client=client))
    assert job.state is JobState.DONE and job.unchanged == 9, job
    # Keys, scopes and rate limits.
    nobody = AuthenticatedClient(base_url=keyed_url, token="wrong")
    refused = list_segmentations.sync_detailed(client=nobody)
    got(Problem, refused, 401)
    assert refused.headers["www-authenticate"].startswith("Bearer")
    shop = AuthenticatedClient(base_url=keyed_url, token=key)
    assert len(got(list, list_segmentations.sync_detailed(client=shop))) == 3
    other = AuthenticatedClient(base_url=keyed_url, token=key, prefix="", auth_header_name="X-API-Key")
    assert len(got(list, list_segmentations.sync_detailed(client=other))) == 3
    got(Problem, start_training.sync_detailed(client=shop), 403)
    untrained = cluster_by_discount.sync_detailed(client=shop, body=[DiscountRow(discount_percentage=64)])
    got(Problem, untrained, 503)
    for _ in range(100):
        slower = list_segmentations.sync_detailed(client=shop)
        if slower.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            break
    got(Problem, slower, 429)
    assert int(slower.headers["retry-after"]) >= 1
    assert got(Greeting, get_greeting.sync_detailed(client=Client(base_url=open_url))).message
    print(calls)


if sys.argv[1] == "document":
    document(*sys.argv[2:])
else:
    drive(*sys.argv[2:])
