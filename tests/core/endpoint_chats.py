"""What the tests of captioning endpoints share: settings, a conversation, waits that take no time, a free port."""

import socket

import torch

from eam_core.captioning.messages import GenerateConfig, Message

CONFIG = GenerateConfig(max_tokens=64, seed=5, temperature=0.2)


def conversation(text: str = "What is this?"):
    return (Message("user", (torch.zeros(3, 16, 16), text)),)


def no_wait(waits: list[float]):
    return lambda seconds: waits.append(seconds)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
