"""Which requests are sampled together: a fake sampler answers with the batch that a request was in."""

import asyncio
import concurrent.futures

import pytest

from harness.backends.local.sampling_client import LocalSamplingClient


class Sampler:
    def __init__(self):
        self.batches = []

    def request(self, prompt, num_samples, params):
        return prompt

    def sample(self, requests):
        self.batches.append(list(requests))
        return [f"answer to {request}" for request in requests]


@pytest.fixture
def sampler():
    return Sampler()


@pytest.fixture
def client(sampler):
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        yield LocalSamplingClient(sampler, thread.submit, thread.shutdown)


async def ask(client, prompt):
    return await client.sample(prompt, 1, None)


def test_what_is_asked_for_before_an_answer_is_waited_for(client, sampler):
    asked = [client.sample(number, 1, None) for number in range(3)]
    assert [answer.result() for answer in asked] == ["answer to 0", "answer to 1", "answer to 2"]
    assert client.sample(3, 1, None).result() == "answer to 3"
    assert sampler.batches == [[0, 1, 2], [3]]


def test_tasks_that_begin_together(client, sampler):
    async def gathered():
        return await asyncio.gather(*(ask(client, number) for number in range(5)))

    assert asyncio.run(gathered()) == [f"answer to {number}" for number in range(5)]
    assert sampler.batches == [[0, 1, 2, 3, 4]]


def test_tasks_that_go_on_together_whatever_the_time_it_takes(client, sampler):
    """Two at a time, as a semaphore lets them: always the same pairs."""

    async def limited():
        places = asyncio.Semaphore(2)

        async def one(number):
            async with places:
                return await ask(client, number)

        return await asyncio.gather(*(one(number) for number in range(6)))

    for _ in range(50):
        assert asyncio.run(limited()) == [f"answer to {number}" for number in range(6)]
    assert sampler.batches == [[0, 1], [2, 3], [4, 5]] * 50


def test_one_after_the_other(client, sampler):
    async def in_turn():
        for number in range(3):
            await client.sample_async(number, 1, None)

    asyncio.run(in_turn())
    assert sampler.batches == [[0], [1], [2]]
