"""What runs in a Ray actor: the runner, its events streamed, a hand-back when asked to leave."""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Iterator

from orchestrator.messages import Event, TaskEnded, TaskHandedBack, WorkOrder


class RayWorker:
    """Keeps its model warm from task to task."""

    def __init__(self, threads: int) -> None:
        torch = importlib.import_module("torch")
        torch.set_num_threads(threads)
        module = importlib.import_module("workers.runner")
        self.runner = module.Runner()
        module.leave_on_sigterm(self.runner)

    def where(self) -> str:
        """The id of the machine; also the sign that the actor is up."""
        ray = importlib.import_module("ray")
        return str(ray.get_runtime_context().get_node_id())

    def run(self, order: WorkOrder, worker: str) -> Iterator[Event]:
        """Run the task in a thread; yield each event when it happens."""
        events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()

        def work() -> None:
            try:
                is_done = self.runner.run(order, events.put)
                if is_done:
                    events.put(TaskEnded(order.task.id, worker, self.runner.holds))
                else:
                    events.put(TaskHandedBack(order.task.id, worker))
            except Exception as error:
                # A stage's errors are events; this one is the runner's own. Raised below.
                events.put(error)

        threading.Thread(target=work, name=order.task.id, daemon=True).start()
        while True:
            event = events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, TaskEnded | TaskHandedBack):
                return
