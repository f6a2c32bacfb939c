"""What a template's rehearsal may and may not touch."""

from __future__ import annotations

import threading

from fastfork import warmup


def test_a_thread_that_was_never_started_is_another_thread():
    assert warmup._is_only_thread()
    waiting = threading.Thread(target=int)
    assert not warmup._is_only_thread()
    del waiting
    assert warmup._is_only_thread()
