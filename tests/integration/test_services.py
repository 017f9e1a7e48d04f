"""A whole service: bus, model, bus, under a tight budget, with faults; nothing goes untold.

Real SDKs, and servers on loopback for what they talk to.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from foundry_log import (
    AsyncServiceBusHandler,
    AzureOpenAIService,
    ContentFilterError,
    ErrorTracker,
    LoggingConfig,
    MetricsLogger,
    RejectMessage,
    configure,
    read_jsonl,
)

SERVICES = "needs test-services: pip install 'foundry_log[test-services]'"
for package in ("aiohttp", "openai", "instructor", "azure.servicebus", "proton"):
    pytest.importorskip(package, reason=SERVICES)

from foundry_log.services.budget_server import serving  # noqa: E402
from foundry_log.services.token_budget import TokenBudget  # noqa: E402
from tests.amqp_broker import SECRET, Broker, running_broker  # noqa: E402
from tests.model_server import (  # noqa: E402
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    REFUSED,
    fails,
    replies,
    running_model,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.services,
    pytest.mark.asyncio,
    pytest.mark.filterwarnings("ignore:open_binary is deprecated"),  # bpe_openai's
    # The SDK of the bus leaves sockets of connections it has lost to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.usefixtures("loses_connections"),
]

MODEL_LOGGER = "foundry_log.services.azure_openai_service"

MESSAGES = 60
REFUSED_BY_FILTER = {7, 31}
POISON = {13, 44}
CONFIDENTIAL = "Mrs. Robinson's diagnosis"
DEADLINE_S = 90.0


class Ticket(BaseModel):
    """What the model makes of a message."""

    number: int
    topic: str


class FaultyModel:
    """Answers tickets; some requests fail, some replies are not valid, some prompts refused."""

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0
        self.faults: Counter[str] = Counter()

    async def __call__(self, request: Any, body: Mapping[str, Any]) -> Any:
        """Answer one request of a `ModelServer`."""
        self.requests += 1
        prompt = next(m["content"] for m in body["messages"] if m["role"] == "user")
        number = int(re.search(r"ticket (\d+)", prompt)[1])  # type: ignore[index]
        if number in REFUSED_BY_FILTER:
            return await self._fault("refused", REFUSED, request, body)
        if self.requests % 11 == 3:
            busy = fails(429, {"Retry-After": "0", "retry-after-ms": "1"})
            return await self._fault("busy", busy, request, body)
        if self.requests % 13 == 5:
            broken = fails(500, {"retry-after-ms": "1"})
            return await self._fault("broken", broken, request, body)
        self.tokens += PROMPT_TOKENS + COMPLETION_TOKENS
        if self.requests % 7 == 2:
            return await self._fault("invalid", replies({"number": "none"}), request, body)
        return await replies({"number": number, "topic": CONFIDENTIAL})(request, body)

    async def _fault(self, name: str, answer: Any, request: Any, body: Mapping[str, Any]) -> Any:
        self.faults[name] += 1
        return await answer(request, body)


async def all_settled(broker: Broker, handler: AsyncServiceBusHandler) -> None:
    """Let links drop and locks expire on the way, and stop once nothing is left."""
    hurt = 0
    while True:
        await asyncio.sleep(0.1)
        account = await asyncio.to_thread(broker.account, "in")
        done = account.get("completed", 0)
        if hurt < 3 and done >= 10 * (hurt + 1):
            faults = (broker.drop_connections, lambda: broker.expire_locks("in"), broker.drop_links)
            await asyncio.to_thread(faults[hurt])
            hurt += 1
        if not account["ready"] and not account["locked"] and hurt == 3:
            handler.stop()
            return


async def serve(directory: Path, broker: Broker, model: FaultyModel, budget: TokenBudget) -> None:
    """Run the service until every message is settled."""
    metrics = MetricsLogger("tickets", directory)
    errors = ErrorTracker(logging.getLogger("tickets"), directory)
    async with (
        serving(budget) as budget_url,
        running_model() as server,
        AzureOpenAIService(
            "gpt-4o",
            "tickets",
            budget_url,
            client=_client(server.url),
            completion_allowance=40,
            validation_retries=3,
            metrics=metrics,
            errors=errors,
        ) as service,
    ):
        server.answers(model)

        async def sort(text: str) -> Any:
            if text == "poison":
                raise RejectMessage("no ticket")
            logging.getLogger("tickets").info("sorting")
            try:
                return await service.structured_prompt(
                    Ticket,
                    "You sort tickets.",
                    "{text}",
                    {"text": text},
                    max_retries=20,
                    retry_jitter_s=0.2,
                )
            except ContentFilterError as error:
                raise RejectMessage("content filter") from error

        handler = AsyncServiceBusHandler(
            sort,
            "in",
            "out",
            connection_string=broker.connection_string,
            retry_delay=0.0,
            max_wait_time=0.2,
            message_batch_size=12,
            at_least_once=True,
            max_deliveries=50,
            concurrency=6,
            work_pause_s=0.0,
            metrics=metrics,
            errors=errors,
        )
        watching = asyncio.create_task(all_settled(broker, handler))
        await asyncio.wait_for(handler.run(), DEADLINE_S)
        await watching
        await service.client.close()
    metrics.close()
    errors.close()


def _client(url: str) -> Any:
    import openai

    return openai.AsyncAzureOpenAI(
        azure_endpoint=url, api_version="2024-10-21", api_key="k3y-of-the-model", max_retries=5
    )


def test_every_message_and_every_token_is_accounted_for(tmp_path: Path) -> None:
    """GIVEN a budget that denies WHEN model and bus fail in turn THEN nothing is lost or untold."""
    model, budget = FaultyModel(), TokenBudget(1_000, 1_000, window_s=0.5)
    with running_broker(lock_s=5.0) as broker, configure(LoggingConfig(), tmp_path, console=False):
        numbers = range(1, MESSAGES + 1)
        bodies = ["poison" if n in POISON else f"ticket {n}: {CONFIDENTIAL}" for n in numbers]
        broker.put("in", *bodies)
        asyncio.run(serve(tmp_path, broker, model, budget))
        account, answers = broker.account("in"), broker.messages("out")
        dead = Counter(reason for _, reason, _ in broker.dead_letters("in"))

    # Each message is answered or among the dead letters, with its reason.
    assert (account["ready"], account["locked"]) == (0, 0)
    assert dead == {"no ticket": len(POISON), "content filter": len(REFUSED_BY_FILTER)}
    answered = {message.id: json.loads(bytes(message.body)) for message in answers}
    tickets = Counter(answer["number"] for answer in answered.values())
    assert tickets == Counter(set(numbers) - POISON - REFUSED_BY_FILTER)
    assert account["completed"] + account["dead-lettered"] == MESSAGES

    # Each fault has happened, and the budget has denied.
    assert min(model.faults[name] for name in ("busy", "broken", "invalid", "refused")) > 0
    figures = budget.status()["applications"]["tickets"]
    assert figures["denials"] > 0
    assert budget.status()["locked_tokens"] == 0

    # The bill: what the model says it used is what was reported, measured and logged.
    history = list(read_jsonl(tmp_path / "metrics.jsonl"))
    calls = [entry for entry in history if "tokens_used" in entry["metrics"]]
    lines = list(read_jsonl(tmp_path / "run.jsonl"))
    told = [line["context"] for line in lines if line["logger"] == MODEL_LOGGER]
    told += [line["context"] for line in read_jsonl(tmp_path / "errors.jsonl")]
    assert figures["prompt_tokens"] + figures["completion_tokens"] == model.tokens
    assert sum(entry["metrics"]["tokens_used"] for entry in calls) == model.tokens
    assert sum(context.get("tokens_used", 0) for context in told) == model.tokens

    # Each line of it says whose it is.
    ids = {f"m{number}" for number in numbers}
    assert {entry["context"]["message_id"] for entry in calls} <= ids
    assert all(entry["context"]["application"] == "tickets" for entry in calls)
    by_user = [line["context"] for line in lines if line["message"] == "sorting"]
    assert {context["message_id"] for context in by_user} == ids - {f"m{n}" for n in POISON}
    steps = [entry["step"] for entry in history]
    assert steps == list(range(1, len(steps) + 1))

    check_that_no_file_has_a_body_or_a_secret(tmp_path)


def check_that_no_file_has_a_body_or_a_secret(directory: Path) -> None:
    """All that was logged, at DEBUG too, tells neither."""
    files = [path for path in directory.iterdir() if path.is_file()]
    assert {"run.jsonl", "run.log", "metrics.jsonl", "errors.jsonl"} <= {p.name for p in files}
    for path in files:
        text = path.read_text()
        for secret in (CONFIDENTIAL, SECRET, "k3y-of-the-model"):
            assert secret not in text, path.name
