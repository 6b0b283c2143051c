"""Third-party clients work with the local server, so it speaks the real protocol."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from conftest import Wire

    from nexusflow_integrations.local import LocalServer

TEXTS = ["A cat sleeps on the sofa.", "一只猫在沙发上睡觉。", "Taxes are due in April."]
MODEL = "text-embedding-v4"


@pytest.mark.slow
def test_the_official_client_gets_equal_vectors_as_floats_and_as_base64(
    nexusflow_server: LocalServer,
) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(
        base_url=nexusflow_server.base_url, api_key=nexusflow_server.api_key
    ) as client:
        by_format = {
            form: client.embeddings.create(model=MODEL, input=TEXTS, encoding_format=form)
            for form in ("float", "base64")
        }
        unasked = client.embeddings.create(model=MODEL, input=TEXTS)
        small = client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=64)
        listed = [model.id for model in client.models.list()]
    floats = [item.embedding for item in by_format["float"].data]
    assert [len(row) for row in floats] == [1024] * 3
    assert [item.embedding for item in unasked.data] == floats
    assert [item.index for item in unasked.data] == [0, 1, 2]
    packed = by_format["base64"].data
    as_sent = [
        np.frombuffer(base64.b64decode(item.embedding), "<f4").tolist()
        if isinstance(item.embedding, str)
        else item.embedding
        for item in packed
    ]
    assert as_sent == floats
    assert unasked.usage.prompt_tokens == unasked.usage.total_tokens > 0
    assert len(small.data[0].embedding) == 64
    assert listed == [MODEL]


async def test_the_official_async_client_gets_the_same_vectors_as_the_sync_one(
    nexusflow_server: LocalServer,
) -> None:
    openai = pytest.importorskip("openai")
    where = {"base_url": nexusflow_server.base_url, "api_key": nexusflow_server.api_key}
    async with openai.AsyncOpenAI(**where) as client:
        answers = await asyncio.gather(
            *(client.embeddings.create(model=MODEL, input=text) for text in TEXTS)
        )
        floats = await client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    with openai.OpenAI(**where) as client:
        together = await asyncio.to_thread(client.embeddings.create, model=MODEL, input=TEXTS)
    expected = [item.embedding for item in together.data]
    assert [answer.data[0].embedding for answer in answers] == expected
    assert [item.embedding for item in floats.data] == expected


def test_the_official_client_raises_its_own_errors(wire: Wire) -> None:
    openai = pytest.importorskip("openai")
    where = {"base_url": wire.server.base_url, "api_key": wire.server.api_key, "max_retries": 0}
    with openai.OpenAI(**where) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model=MODEL, input=["x"] * 11)
        assert refused.value.code == "invalid_parameter_error"
        assert refused.value.request_id
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="text-embedding-3-small", input="x")
        with pytest.raises(openai.BadRequestError, match="neither str nor list of str"):
            client.embeddings.create(model=MODEL, input=[[1, 2, 3]])


def test_langchains_openai_embeddings_embed_through_it(nexusflow_server: LocalServer) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    embeddings = langchain_openai.OpenAIEmbeddings(
        model=MODEL,
        base_url=nexusflow_server.base_url,
        api_key=nexusflow_server.api_key,
        check_embedding_ctx_length=False,
        chunk_size=10,
    )
    nexusflow_server.reset_stats()
    rows = embeddings.embed_documents([*TEXTS * 4, "a thirteenth text"])
    assert [len(row) for row in rows] == [1024] * 13
    assert rows[:3] == rows[9:12]
    assert embeddings.embed_query(TEXTS[0]) == pytest.approx(rows[0], abs=1e-6)
    assert nexusflow_server.stats.statuses == {200: 3}


async def test_langchains_openai_embeddings_embed_asynchronously(
    nexusflow_server: LocalServer,
) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    embeddings = langchain_openai.OpenAIEmbeddings(
        model=MODEL,
        base_url=nexusflow_server.base_url,
        api_key=nexusflow_server.api_key,
        check_embedding_ctx_length=False,
        chunk_size=10,
        dimensions=256,
    )
    rows = await embeddings.aembed_documents(TEXTS)
    assert [len(row) for row in rows] == [256] * 3


def test_llama_indexs_openai_like_embedding_embeds_through_it(
    nexusflow_server: LocalServer,
) -> None:
    openai_like = pytest.importorskip("llama_index.embeddings.openai_like")
    embedding = openai_like.OpenAILikeEmbedding(
        model_name=MODEL,
        api_base=nexusflow_server.base_url,
        api_key=nexusflow_server.api_key,
        embed_batch_size=10,
    )
    rows = embedding.get_text_embedding_batch([*TEXTS * 4, "a thirteenth text"])
    assert [len(row) for row in rows] == [1024] * 13
    assert embedding.get_query_embedding(TEXTS[1]) == pytest.approx(rows[1], abs=1e-6)
    again = asyncio.run(embedding.aget_text_embedding_batch(TEXTS))
    np.testing.assert_allclose(again, rows[:3], atol=1e-6)
