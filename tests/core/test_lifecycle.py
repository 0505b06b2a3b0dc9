"""The life of one instance, told as stories: what happens, and what the supervisor does about it.

``Life`` is one instance with a clock of its own. ``tell`` is an event; it returns the effects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from instances import DEADLINE, STATUS, instance, worker

from supervisor.core.diagnosis import CauseClass
from supervisor.core.instance import InstanceSpec, Probe, Progress, RestartPolicy
from supervisor.core.lifecycle import (
    FAULT_GRACE,
    HURRIED_GRACE,
    INTERRUPT_GRACE,
    KILL_GRACE,
    LATE,
    Adjusted,
    BlockersFound,
    Check,
    DependenciesReady,
    DependentsStopped,
    Diagnose,
    Diagnosed,
    Drain,
    Drained,
    Effect,
    EnteredRotation,
    EnterRotation,
    Event,
    Exited,
    FindBlockers,
    Hurried,
    LeaveRotation,
    Outcome,
    Probed,
    RestartRequested,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    Stage,
    StartProbes,
    StartRequested,
    State,
    Status,
    StopProbes,
    StopRequested,
    TimerFired,
    on_probation,
    step,
)

LASTING = (Check.READINESS, Check.LIVENESS, Check.PROGRESS)
ARGUMENT_ERROR = "exited with 2: its command line is wrong"


class Life:
    def __init__(self, spec: InstanceSpec | None = None, *, jitter: float = 0.0) -> None:
        self.spec = spec or worker()
        self.jitter = jitter
        self.status = Status()
        self.now = 1000.0

    def tell(self, *events: Event) -> list[Effect]:
        done: list[Effect] = []
        for event in events:
            self.status, effects = step(
                self.status, event, self.spec, now=self.now, jitter=self.jitter
            )
            done += effects
        return done

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def wait_for_timer(self) -> list[Effect]:
        assert self.status.timer is not None, "nothing is going to happen by itself"
        self.now = self.status.timer.at
        return self.tell(TimerFired(self.status.timer.epoch))

    @property
    def delay(self) -> float:
        """Seconds until its timer fires."""
        assert self.status.timer is not None
        return self.status.timer.at - self.now

    # -- what often happens

    def start(self) -> list[Effect]:
        return self.tell(StartRequested("asked to start"), DependenciesReady())

    def spawned(self) -> list[Effect]:
        return self.tell(Spawned(self.status.run, 100 + self.status.run))

    def answered(
        self, check: Check, outcome: Outcome = Outcome.PASSED, detail: str = "fine"
    ) -> list[Effect]:
        return self.tell(Probed(self.status.run, check, outcome, detail))

    def failed(self, check: Check, times: int = 1, detail: str = "silent") -> list[Effect]:
        done: list[Effect] = []
        for _ in range(times):
            done += self.answered(check, Outcome.FAILED, detail)
        return done

    def becomes_ready(self) -> list[Effect]:
        done = self.spawned() + self.answered(Check.STARTUP, detail="generated a token")
        return done + self.tell(EnteredRotation(self.status.run))

    def crashes(self, code: int = 1) -> list[Effect]:
        return self.tell(Exited(self.status.run, code, None))

    def ready(self) -> Life:
        self.start()
        self.becomes_ready()
        assert self.status.state is State.READY
        return self


# ---------------------------------------------------------------- the first start


def test_first_start_of_a_worker_from_nothing_to_ready() -> None:
    life = Life(worker())
    assert life.start() == [Spawn(1)]
    assert (life.status.state, life.delay) == (State.STARTING, DEADLINE)
    assert life.spawned() == [StartProbes(1, (Check.STARTUP,))]
    assert life.status.pid == 101
    assert life.answered(Check.STARTUP, detail="generated a token") == [EnterRotation(1)]
    assert life.status.state is State.STARTING, "it is ready when the controller has it"
    effects = life.tell(EnteredRotation(1))
    assert effects == [StartProbes(1, LASTING)]
    assert (life.status.state, life.status.timer) == (State.READY, None)
    assert life.status.ready_at == life.now


def test_what_needs_no_rotation_is_ready_as_soon_as_it_answers() -> None:
    life = Life(instance("api_server"))
    life.start()
    life.spawned()
    assert life.answered(Check.STARTUP) == [StartProbes(1, LASTING)]
    assert life.status.state is State.READY


def test_without_a_startup_probe_it_is_ready_as_soon_as_it_runs() -> None:
    life = Life(instance("tick", startup=None, readiness=None, liveness=None))
    life.start()
    assert life.status.timer is None, "there is no deadline to miss"
    life.spawned()
    assert life.status.state is State.READY


def test_even_a_worker_without_startup_probe_is_ready_only_when_the_controller_has_it() -> None:
    life = Life(worker(startup=None))
    life.start()
    assert life.spawned() == [EnterRotation(1)]
    life.tell(EnteredRotation(1))
    assert life.status.state is State.READY


def test_wanted_is_not_started_until_its_dependencies_are_ready() -> None:
    life = Life()
    assert life.tell(StartRequested("asked to start")) == []
    assert (life.status.state, life.status.wanted) == (State.STOPPED, True)
    assert life.status.reason == "asked to start; waiting to start"
    assert life.tell(DependenciesReady()) == [Spawn(1)]


def test_ready_dependencies_do_not_start_what_nobody_wants() -> None:
    life = Life()
    assert life.tell(DependenciesReady()) == []
    assert life.status == Status()


def test_start_deadline_stops_it_and_says_what_the_last_answer_was() -> None:
    life = Life()
    life.start()
    life.spawned()
    life.failed(Check.STARTUP, detail="connection refused")
    assert life.wait_for_timer() == [StopProbes(), Signal(Stage.TERM)]
    assert life.status.state is State.STOPPING
    assert life.status.reason == "not ready after 1800 s (connection refused)"
    assert life.crashes(0) == [StopProbes(), Spawn(2)], "by its policy: the first time at once"
    assert "not ready after 1800 s" in life.status.reason


def test_a_slow_controller_is_not_the_fault_of_a_worker_that_answers() -> None:
    """The deadline judges its own start; a controller that is down must not reload a model."""
    life = Life()
    life.start()
    life.spawned()
    life.answered(Check.STARTUP)
    assert life.status.timer is None


# ---------------------------------------------------------------- restarts


def test_first_crash_restarts_at_once_further_ones_after_a_growing_delay_up_to_the_cap() -> None:
    life = Life(worker(restart=RestartPolicy(backoff=1.0, backoff_max=6.0)))
    life.start()
    life.spawned()
    assert life.crashes() == [StopProbes(), Diagnose(1), Spawn(2)]
    assert life.status.reason == "exited with 1; restarting at once"
    delays = []
    for run in range(2, 8):
        life.spawned()
        assert life.crashes() == [StopProbes(), Diagnose(run)]
        assert life.status.state is State.BACKOFF
        delays.append(life.delay)
        assert life.wait_for_timer() == [Spawn(run + 1)]
    assert delays == [1.0, 2.0, 4.0, 6.0, 6.0, 6.0]
    assert life.status.restarts == 7


def test_jitter_takes_a_part_of_the_delay_away_and_never_adds_to_the_cap() -> None:
    policy = RestartPolicy(backoff=10.0, backoff_max=10.0, jitter=0.25)
    delays = []
    for luck in (0.0, 0.5, 1.0):
        life = Life(worker(restart=policy), jitter=luck)
        life.start()
        life.crashes()
        life.crashes()
        delays.append(life.delay)
    assert delays == [10.0, 8.75, 7.5]


def test_after_a_stable_while_the_next_crash_counts_as_the_first() -> None:
    life = Life(worker(restart=RestartPolicy(stable_after=60.0)))
    life.start()
    life.crashes()
    life.becomes_ready()
    life.pass_time(60.0)
    assert Spawn(3) in life.crashes()
    assert life.status.reason == "exited with 1; restarting at once"


def test_a_crash_loop_that_gets_past_readiness_backs_off_all_the_same() -> None:
    """supervisord#1285: being up for a moment is no proof of health."""
    life = Life(worker(restart=RestartPolicy(stable_after=60.0))).ready()
    life.crashes()
    for delay in (1.0, 2.0, 4.0):
        life.becomes_ready()
        life.pass_time(59.0)
        life.crashes()
        assert (life.status.state, life.delay) == (State.BACKOFF, delay)
        life.wait_for_timer()


def test_the_time_it_takes_to_stop_a_hung_process_does_not_count_as_stable() -> None:
    life = Life(worker(restart=RestartPolicy(stable_after=60.0))).ready()
    life.crashes()
    life.becomes_ready()
    life.pass_time(30.0)
    life.failed(Check.READINESS, times=3)
    life.failed(Check.LIVENESS, times=2)
    life.pass_time(300.0)
    life.crashes()
    assert life.status.state is State.BACKOFF


def test_a_limit_ends_in_failed_and_says_so() -> None:
    life = Life(worker(restart=RestartPolicy(limit=2)))
    life.start()
    life.crashes()
    life.crashes()
    life.wait_for_timer()
    assert life.crashes() == [StopProbes(), Diagnose(3)]
    assert (life.status.state, life.status.timer) == (State.FAILED, None)
    assert "its limit of 2 restarts in a row is reached" in life.status.reason
    life.tell(Diagnosed(3, "exited with 1: RuntimeError: boom", CauseClass.UNKNOWN))
    assert life.status.reason.startswith("exited with 1: RuntimeError: boom; its limit of 2")


def test_policy_never_leaves_it_stopped_after_success_and_failed_after_failure() -> None:
    once = worker(restart=RestartPolicy(policy="never"))
    life = Life(once)
    life.start()
    life.crashes(0)
    assert (life.status.state, life.status.wanted) == (State.STOPPED, False)
    assert life.status.reason == "exited with 0; it finished, and its restart policy leaves it so"
    life = Life(once)
    life.start()
    life.crashes(1)
    assert life.status.state is State.FAILED
    assert life.status.reason == "exited with 1; its restart policy is never"


def test_policy_on_failure_restarts_after_failure_only() -> None:
    life = Life(worker(restart=RestartPolicy(policy="on_failure")))
    life.start()
    assert Spawn(2) in life.crashes(1)
    life.crashes(0)
    assert (life.status.state, life.status.wanted) == (State.STOPPED, False)


def test_a_kill_by_a_signal_is_a_failure() -> None:
    life = Life(worker(restart=RestartPolicy(policy="on_failure")))
    life.start()
    assert Spawn(2) in life.tell(Exited(1, None, "SIGKILL"))
    assert life.status.reason == "was killed by SIGKILL; restarting at once"


def test_policy_always_restarts_after_success_too() -> None:
    life = Life()
    life.start()
    assert Spawn(2) in life.crashes(0)


# ---------------------------------------------------------------- starts that can never work


def test_a_program_that_is_missing_ends_in_failed_after_three_tries() -> None:
    life = Life()
    life.start()
    cause = "there is no program /opt/vllm/bin/python; install it or mend the path"
    assert life.tell(SpawnFailed(1, cause, CauseClass.WRONG_CONFIG)) == [Spawn(2)]
    life.tell(SpawnFailed(2, cause, CauseClass.WRONG_CONFIG))
    assert life.status.state is State.BACKOFF
    life.wait_for_timer()
    assert life.tell(SpawnFailed(3, cause, CauseClass.WRONG_CONFIG)) == []
    assert life.status.state is State.FAILED
    assert life.status.reason.startswith(f"could not be started: {cause}; given up after 3 tries")
    assert life.status.last_exit == f"could not be started: {cause}"


def test_only_hopeless_tries_in_a_row_count() -> None:
    life = Life()
    life.start()
    life.tell(SpawnFailed(1, "no program", CauseClass.WRONG_CONFIG))
    life.tell(SpawnFailed(2, "no program", CauseClass.WRONG_CONFIG))
    life.wait_for_timer()
    life.tell(SpawnFailed(3, "resource temporarily unavailable", CauseClass.UNKNOWN))
    life.wait_for_timer()
    life.tell(SpawnFailed(4, "no program", CauseClass.WRONG_CONFIG))
    assert life.status.state is State.BACKOFF


def test_a_wrong_argument_ends_in_failed_though_its_diagnosis_comes_after_the_restart() -> None:
    """The first restart does not wait for the log to be read; the verdict comes late, and holds."""
    life = Life()
    life.start()
    life.spawned()
    life.crashes(2)
    life.spawned()
    life.tell(Diagnosed(1, ARGUMENT_ERROR, CauseClass.WRONG_CONFIG))
    assert life.status.state is State.STARTING
    assert life.status.reason == f"started as pid 102, not ready yet (before: {ARGUMENT_ERROR})"
    life.crashes(2)
    life.tell(Diagnosed(2, ARGUMENT_ERROR, CauseClass.WRONG_CONFIG))
    assert life.status.state is State.BACKOFF
    assert life.status.reason == f"{ARGUMENT_ERROR}; restart 2 in a row, after 1.0 s"
    life.wait_for_timer()
    life.spawned()
    life.crashes(2)
    assert life.tell(Diagnosed(3, ARGUMENT_ERROR, CauseClass.WRONG_CONFIG)) == []
    assert (life.status.state, life.status.timer) == (State.FAILED, None)
    assert life.status.reason.startswith(f"{ARGUMENT_ERROR}; given up after 3 tries")
    assert life.status.wanted, "it is still wanted: it has failed, nobody stopped it"


def test_a_diagnosis_that_comes_after_the_next_crash_does_not_pass_for_its_cause() -> None:
    life = Life()
    life.start()
    life.crashes(2)
    life.tell(Exited(2, None, "SIGKILL"))
    life.tell(Diagnosed(1, ARGUMENT_ERROR, CauseClass.WRONG_CONFIG))
    assert life.status.reason == "was killed by SIGKILL; restart 2 in a row, after 1.0 s"
    assert life.status.last_exit == "was killed by SIGKILL"
    life.tell(Diagnosed(2, "was killed by SIGKILL (by hand)", CauseClass.UNKNOWN))
    assert life.status.reason == "was killed by SIGKILL (by hand); restart 2 in a row, after 1.0 s"


def test_want_of_memory_is_waited_for_though_its_diagnosis_comes_after_the_first_restart() -> None:
    life = Life()
    life.start()
    life.spawned()
    assert Spawn(2) in life.crashes(), "the first restart waits for no diagnosis"
    life.tell(Diagnosed(1, "the GPU is out of memory", CauseClass.GPU_MEMORY))
    assert life.status.last_exit_class is CauseClass.GPU_MEMORY
    life.spawned()
    delays = []
    for run in (2, 3, 4, 5):
        life.crashes()
        delays.append(life.delay)
        life.tell(Diagnosed(run, "the GPU is out of memory", CauseClass.GPU_MEMORY))
        assert life.delay == delays[-1], "as was supposed"
        life.wait_for_timer()
        life.spawned()
    assert delays == [10.0, 20.0, 40.0, 60.0]
    assert life.status.restarts == 5


def test_a_diagnosis_changes_how_long_is_waited() -> None:
    life = Life()
    life.start()
    life.crashes()
    life.crashes()
    assert life.delay == 1.0
    life.pass_time(0.3)
    life.tell(Diagnosed(2, "the GPU is lost", CauseClass.GPU_LOST))
    assert life.delay == pytest.approx(59.7), "since it has ended, not since that is known"
    assert life.status.reason == (
        "the GPU is lost; restart 2 in a row, after 60.0 s, to wait for the GPU"
    )
    life.wait_for_timer()
    life.crashes()
    assert life.delay == 60.0
    life.pass_time(0.3)
    life.tell(Diagnosed(3, "was killed by SIGKILL (by hand)", CauseClass.UNKNOWN))
    assert life.delay == pytest.approx(1.7), "not for the GPU any more"


def test_what_was_waited_for_is_of_no_account_in_an_end_of_another_kind() -> None:
    """It starts, and is then too slow: that is no want of memory."""
    life = Life()
    life.start()
    life.crashes()
    life.crashes()
    life.tell(Diagnosed(2, "the GPU is out of memory", CauseClass.GPU_MEMORY))
    life.wait_for_timer()
    life.spawned()
    life.wait_for_timer()
    assert life.status.state is State.STOPPING
    life.tell(Exited(3, None, "SIGTERM"))
    assert (life.status.state, life.status.last_exit_class) == (State.BACKOFF, None)
    assert life.delay == 2.0


def test_a_start_is_not_blamed_for_our_own_absence() -> None:
    """The supervisor was suspended (SIGSTOP, a laptop's lid): nobody was there to ask it."""
    life = Life()
    life.start()
    life.spawned()
    life.pass_time(DEADLINE - 1)
    timer = life.status.timer
    assert timer is not None
    life.now = timer.at + 3600.0
    assert life.tell(TimerFired(timer.epoch)) == []
    assert (life.status.state, life.delay) == (State.STARTING, 5.0 + LATE)
    life.wait_for_timer()
    assert life.status.state is State.STOPPING, "it was asked once more, and did not answer"


def test_readiness_wipes_out_earlier_hopeless_tries() -> None:
    life = Life()
    life.start()
    life.tell(SpawnFailed(1, "no program", CauseClass.WRONG_CONFIG))
    assert life.status.hopeless == 1
    life.becomes_ready()
    assert life.status.hopeless == 0
    life.tell(Diagnosed(1, "late", CauseClass.WRONG_CONFIG))
    assert life.status.hopeless == 0, "it has started since: so it can"


def test_without_a_startup_probe_to_run_is_no_proof_that_it_can() -> None:
    """A command whose script is missing runs for a moment, each time, and can still never work."""
    life = Life(instance("webui", startup=None, readiness=None, liveness=None))
    life.start()
    for run in (1, 2, 3):
        life.spawned()
        assert life.status.state is State.READY
        life.crashes(2)
        if run == 1:
            life.spawned()
        life.tell(Diagnosed(run, "can't open file '/srv/webui.py'", CauseClass.WRONG_CONFIG))
        if run == 2:
            life.wait_for_timer()
    assert life.status.state is State.FAILED


def test_without_a_startup_probe_a_stable_while_is_proof_that_it_can() -> None:
    life = Life(instance("webui", startup=None, readiness=None, liveness=None))
    life.start()
    for run in range(1, 10):
        life.spawned()
        life.pass_time(3600.0)
        assert Spawn(run + 1) in life.crashes(1)
        life.tell(Diagnosed(run, "a plugin is missing", CauseClass.WRONG_CONFIG))
    assert life.status.state is State.STARTING


def test_without_a_startup_probe_it_is_on_probation_after_a_crash_until_it_is_stable() -> None:
    plain = instance("webui", startup=None, readiness=None, liveness=None)
    life = Life(replace(plain, restart=RestartPolicy(stable_after=60.0)))
    life.start()
    life.spawned()
    assert not on_probation(life.status), "it has done nothing wrong yet"
    life.crashes()
    life.spawned()
    assert (life.status.state, on_probation(life.status), life.delay) == (State.READY, True, 60.0)
    assert life.wait_for_timer() == []
    assert (life.status.state, on_probation(life.status)) == (State.READY, False)
    assert Spawn(3) in life.crashes(), "at once, as for the first time"


def test_with_a_startup_probe_it_is_never_on_probation() -> None:
    life = Life().ready()
    life.crashes()
    life.becomes_ready()
    assert (life.status.state, on_probation(life.status)) == (State.READY, False)


def test_a_person_can_start_what_has_failed_with_a_clean_slate() -> None:
    life = Life(worker(restart=RestartPolicy(limit=0)))
    life.start()
    life.crashes()
    assert life.status.state is State.FAILED
    assert life.start() == [Spawn(2)]
    assert life.status.streak == 0


def test_a_person_need_not_wait_for_the_backoff() -> None:
    life = Life()
    life.start()
    life.crashes()
    life.crashes()
    assert life.status.state is State.BACKOFF
    assert life.tell(RestartRequested("asked to restart"), DependenciesReady()) == [Spawn(3)]


# ---------------------------------------------------------------- readiness


def test_a_single_failure_is_not_enough_and_a_pass_in_between_starts_the_count_anew() -> None:
    life = Life().ready()
    assert life.failed(Check.READINESS, times=2) == []
    life.answered(Check.READINESS)
    assert life.failed(Check.READINESS, times=2) == []
    assert life.status.state is State.READY


def test_readiness_lost_takes_it_out_of_rotation_at_once() -> None:
    life = Life().ready()
    assert life.failed(Check.READINESS, times=3) == [LeaveRotation()]
    assert life.status.state is State.UNREADY
    assert life.status.reason == "readiness failed 3 times in a row: silent"


def test_it_comes_back_only_after_the_startup_questions_have_passed_again() -> None:
    """A status probe can lie (a wedged semaphore): a real generation decides, as at the start."""
    life = Life().ready()
    life.failed(Check.READINESS, times=3)
    assert life.answered(Check.READINESS) == [StartProbes(1, (Check.STARTUP,))]
    assert (life.status.state, life.status.in_rotation) == (State.UNREADY, False)
    assert life.answered(Check.STARTUP, detail="generated a token") == [EnterRotation(1)]
    life.tell(EnteredRotation(1))
    assert (life.status.state, life.status.in_rotation) == (State.READY, True)


def test_the_questions_on_its_return_are_begun_once_though_readiness_passes_meanwhile() -> None:
    """Begun anew at every pass, a generation slower than the readiness interval never ends."""
    life = Life().ready()
    life.failed(Check.READINESS, times=3)
    life.answered(Check.READINESS)
    assert life.answered(Check.READINESS) == []
    life.failed(Check.READINESS)
    assert life.answered(Check.READINESS) == []


def test_unready_again_before_the_controller_has_it_back_it_leaves_and_tries_once_more() -> None:
    life = Life().ready()
    life.failed(Check.READINESS, times=3)
    life.answered(Check.READINESS)
    life.answered(Check.STARTUP)
    assert life.failed(Check.READINESS, times=3) == [LeaveRotation()]
    assert not life.status.in_rotation
    life.tell(EnteredRotation(1))
    assert life.status.state is State.UNREADY, "an entry that was taken back does not count"
    assert life.answered(Check.READINESS) == [StartProbes(1, (Check.STARTUP,))]


def test_without_startup_questions_a_readiness_pass_is_enough_to_return() -> None:
    life = Life(instance("webui", startup=None)).ready()
    life.failed(Check.READINESS, times=3)
    life.answered(Check.READINESS)
    assert life.status.state is State.READY


@pytest.mark.parametrize("check", list(Check))
def test_could_not_be_asked_is_no_evidence(check: Check) -> None:
    life = Life().ready()
    for _ in range(100):
        assert life.answered(check, Outcome.UNASKED, "too many open files") == []
    assert life.status.state is State.READY
    assert life.status.detail == "too many open files"


def test_could_not_be_asked_neither_adds_to_failures_nor_clears_them() -> None:
    life = Life().ready()
    life.failed(Check.READINESS, times=2)
    life.answered(Check.READINESS, Outcome.UNASKED)
    assert life.status.state is State.READY
    life.failed(Check.READINESS)
    assert life.status.state is State.UNREADY


# ---------------------------------------------------------------- liveness


def test_liveness_lost_stops_it_and_its_policy_starts_it_again() -> None:
    life = Life().ready()
    life.failed(Check.LIVENESS)
    effects = life.failed(Check.LIVENESS, detail="no answer within 30 s")
    assert effects == [StopProbes(), LeaveRotation(), Signal(Stage.TERM)]
    fault = "liveness failed 2 times in a row: no answer within 30 s"
    assert (life.status.state, life.status.reason) == (State.STOPPING, fault)
    assert life.tell(Exited(1, None, "SIGKILL")) == [StopProbes(), Spawn(2)]
    assert life.status.reason == f"{fault}; restarting at once"


def test_a_hiccup_now_and_then_is_no_reason_to_stop_it() -> None:
    life = Life().ready()
    for _ in range(10):
        assert life.failed(Check.LIVENESS) == []
        life.answered(Check.LIVENESS)
    assert life.status.state is State.READY


def test_a_process_that_ends_politely_when_stopped_for_a_fault_has_not_finished() -> None:
    life = Life(worker(restart=RestartPolicy(policy="on_failure"))).ready()
    life.failed(Check.LIVENESS, times=2)
    assert Spawn(2) in life.crashes(0)


def test_liveness_counts_while_unready_too() -> None:
    life = Life().ready()
    life.failed(Check.READINESS, times=3)
    assert life.failed(Check.LIVENESS, times=2) == [StopProbes(), Signal(Stage.TERM)]


def test_at_fault_a_worker_gets_no_time_for_requests_that_do_not_get_on() -> None:
    life = Life(worker(stop_grace=30.0, drain_timeout=300.0)).ready()
    life.failed(Check.LIVENESS, times=2)
    assert (life.status.stage, life.delay) == (Stage.TERM, FAULT_GRACE)


# ---------------------------------------------------------------- progress


def test_one_that_hangs_beyond_doubt_is_out_of_rotation_in_the_same_step() -> None:
    life = Life().ready()
    effects = life.answered(Check.PROGRESS, Outcome.CONDEMNED, "nothing for 2m")
    assert effects == [StopProbes(), LeaveRotation(), Signal(Stage.TERM)]
    assert life.status.reason == "it hangs: nothing for 2m"
    assert life.tell(Exited(1, None, "SIGKILL")) == [StopProbes(), Spawn(2)]
    assert life.status.reason == "it hangs: nothing for 2m; restarting at once"


def test_one_that_cannot_generate_is_given_one_more_chance() -> None:
    life = Life().ready()
    assert life.failed(Check.PROGRESS, detail="error 50001") == []
    effects = life.failed(Check.PROGRESS, detail="error 50001")
    assert effects == [StopProbes(), LeaveRotation(), Signal(Stage.TERM)]
    fault = "asked for one token, it failed 2 times in a row: error 50001"
    assert life.status.reason == fault


def test_a_token_in_between_forgives_what_failed_before() -> None:
    life = Life().ready()
    for _ in range(10):
        assert life.failed(Check.PROGRESS) == []
        assert life.answered(Check.PROGRESS, Outcome.UNASKED) == []
        assert life.answered(Check.PROGRESS) == []
    assert life.status.state is State.READY


def test_progress_counts_while_unready_too() -> None:
    life = Life().ready()
    life.failed(Check.READINESS, times=3)
    effects = life.answered(Check.PROGRESS, Outcome.CONDEMNED)
    assert effects == [StopProbes(), Signal(Stage.TERM)]


@pytest.mark.parametrize("progress", [None, Progress(enabled=False)])
def test_who_is_not_looked_at_is_not_condemned(progress: Progress | None) -> None:
    life = Life(worker(progress=progress)).ready()
    assert life.answered(Check.PROGRESS, Outcome.CONDEMNED) == []
    assert life.status.state is State.READY


def test_a_process_starts_with_a_clean_record() -> None:
    life = Life().ready()
    life.failed(Check.PROGRESS)
    life.crashes()
    life.becomes_ready()
    assert life.failed(Check.PROGRESS) == []


# ---------------------------------------------------------------- stopping


def test_stop_waits_for_those_that_depend_on_it() -> None:
    life = Life().ready()
    assert life.tell(StopRequested("asked to stop")) == []
    assert (life.status.state, life.status.wanted) == (State.READY, False)
    effects = life.tell(DependentsStopped())
    assert effects == [StopProbes(), LeaveRotation(), Signal(Stage.TERM)]
    assert (life.status.state, life.status.reason) == (State.STOPPING, "asked to stop")
    life.crashes(0)
    assert (life.status.state, life.status.reason) == (State.STOPPED, "asked to stop")
    assert (life.status.timer, life.status.pid, life.status.wanted) == (None, None, False)


def test_stopped_dependents_do_not_stop_what_is_wanted() -> None:
    life = Life().ready()
    assert life.tell(DependentsStopped()) == []
    assert life.status.state is State.READY


def test_signals_get_sterner_until_it_is_gone() -> None:
    life = Life(worker(stop_grace=30.0)).ready()
    life.tell(StopRequested("asked to stop"))
    assert Signal(Stage.TERM) in life.tell(DependentsStopped())
    assert life.delay == 30.0
    assert life.wait_for_timer() == [Signal(Stage.INT)]
    assert life.status.reason == "pid 101 is still there after SIGTERM; sending SIGINT"
    assert life.delay == INTERRUPT_GRACE
    assert life.wait_for_timer() == [Signal(Stage.KILL)]
    assert life.delay == KILL_GRACE
    again = [Signal(Stage.KILL), FindBlockers(1)]
    assert life.wait_for_timer() == again, "and again, until the kernel lets it go"
    assert "stuck in the kernel" in life.status.reason
    life.tell(Exited(1, None, "SIGKILL"))
    assert (life.status.state, life.status.reason) == (State.STOPPED, "asked to stop")


def test_what_survives_sigkill_is_told_once_and_by_name() -> None:
    life = Life().ready()
    life.tell(StopRequested("asked to stop"), DependentsStopped())
    for _ in range(3):
        life.wait_for_timer()
    left = "pid 7 (python x.py), dead, but kept by pid 9 (gdb), which traces it"
    life.tell(BlockersFound(1, left))
    assert life.status.reason == f"not even SIGKILL ends it: {left}"
    assert life.wait_for_timer() == [Signal(Stage.KILL), FindBlockers(1)]
    assert life.status.reason == f"not even SIGKILL ends it: {left}"
    life.tell(Exited(1, None, "SIGKILL"))
    before = life.status
    life.tell(BlockersFound(1, left))
    assert life.status == before, "what comes late changes nothing"


def test_asked_twice_it_skips_the_grace() -> None:
    life = Life().ready()
    life.tell(StopRequested("received SIGINT"), DependentsStopped())
    assert life.tell(Hurried()) == [Signal(Stage.INT)]
    assert life.delay == HURRIED_GRACE
    assert life.wait_for_timer() == [Signal(Stage.KILL)]


def test_asked_three_times_it_is_killed_at_once() -> None:
    life = Life().ready()
    life.tell(StopRequested("received SIGINT"), DependentsStopped(), Hurried())
    assert life.tell(Hurried()) == [Signal(Stage.KILL)]
    assert life.delay == KILL_GRACE


def test_asked_twice_it_does_not_wait_for_its_dependents_any_more() -> None:
    life = Life().ready()
    life.tell(StopRequested("received SIGINT"))
    assert life.tell(Hurried())[-2:] == [Signal(Stage.TERM), Signal(Stage.INT)]
    assert (life.status.state, life.delay) == (State.STOPPING, HURRIED_GRACE), "nor for its grace"
    assert life.wait_for_timer() == [Signal(Stage.KILL)]


def test_a_hurry_does_not_touch_what_is_wanted() -> None:
    life = Life().ready()
    assert life.tell(Hurried()) == []
    assert life.status.state is State.READY


def test_stopped_while_its_process_is_being_spawned() -> None:
    """It is decided, but the process is not there yet: if it still comes, it is told once more."""
    life = Life()
    life.start()
    life.tell(StopRequested("asked to stop"))
    assert life.tell(DependentsStopped()) == [StopProbes(), Signal(Stage.TERM)]
    assert life.spawned() == [Signal(Stage.TERM)]
    life.tell(Exited(1, None, "SIGTERM"))
    assert (life.status.state, life.status.run) == (State.STOPPED, 1)


def test_a_process_that_appears_after_the_grace_gets_the_signal_that_is_due() -> None:
    life = Life()
    life.start()
    life.tell(StopRequested("asked to stop"), DependentsStopped())
    assert life.wait_for_timer() == [Signal(Stage.INT)]
    assert "about to start" in life.status.reason
    assert life.spawned() == [Signal(Stage.INT)]


def test_stopped_while_its_spawn_fails() -> None:
    life = Life()
    life.start()
    life.tell(StopRequested("asked to stop"), DependentsStopped())
    assert life.tell(SpawnFailed(1, "no program", CauseClass.WRONG_CONFIG)) == []
    assert life.status.state is State.STOPPED


def test_a_crash_while_it_waits_to_be_stopped_is_its_end() -> None:
    life = Life().ready()
    life.tell(StopRequested("asked to stop"))
    assert life.crashes() == [StopProbes(), LeaveRotation()]
    assert life.status.state is State.STOPPED


@pytest.mark.parametrize("state", [State.BACKOFF, State.FAILED, State.STOPPED])
def test_without_a_process_stop_means_stopped_at_once(state: State) -> None:
    life = Life(worker(restart=RestartPolicy(limit=0 if state is State.FAILED else None)))
    if state is not State.STOPPED:
        life.start()
        life.crashes()
        life.crashes()
    assert life.status.state is state
    assert life.tell(StopRequested("received SIGTERM")) == []
    assert (life.status.state, life.status.wanted) == (State.STOPPED, False)
    assert (life.status.reason, life.status.timer) == ("received SIGTERM", None)


def test_changing_ones_mind_before_the_stop_has_begun_costs_nothing() -> None:
    life = Life().ready()
    assert life.tell(StopRequested("asked to stop"), StartRequested("asked to start")) == []
    assert life.tell(DependentsStopped()) == []
    assert life.status.state is State.READY


# ---------------------------------------------------------------- draining


def draining(**fields: Any) -> Life:
    """A worker that has been asked to stop while it served."""
    life = Life(worker(drain_timeout=300.0, stop_grace=30.0, **fields)).ready()
    life.tell(StopRequested("asked to stop"), DependentsStopped())
    assert life.status.stage is Stage.DRAIN
    return life


def test_a_worker_that_serves_gets_no_new_requests_and_ends_those_it_has() -> None:
    life = Life(worker(drain_timeout=300.0, stop_grace=30.0)).ready()
    effects = life.tell(StopRequested("asked to stop"), DependentsStopped())
    assert effects == [StopProbes(), LeaveRotation(), Drain(1)], "and no signal"
    assert (life.status.state, life.status.stage) == (State.STOPPING, Stage.DRAIN)
    assert life.status.reason == "asked to stop; finishing its requests"
    assert life.delay == 300.0
    assert life.tell(Drained(1)) == [Signal(Stage.TERM)]
    assert life.status.reason == "no request is left; sending SIGTERM"
    assert life.delay == 30.0
    life.tell(Exited(1, None, "SIGTERM"))
    assert (life.status.state, life.status.reason) == (State.STOPPED, "asked to stop")


def test_requests_that_do_not_end_in_time_are_cut_and_that_is_said() -> None:
    life = draining()
    assert life.wait_for_timer() == [Signal(Stage.TERM)]
    assert life.status.reason == "it still has requests after 300 s; sending SIGTERM"
    assert life.tell(Drained(1)) == [], "too late to matter"
    assert life.wait_for_timer() == [Signal(Stage.INT)]


def test_a_restart_drains_too() -> None:
    life = Life(worker(drain_timeout=300.0)).ready()
    assert life.tell(RestartRequested("asked to restart"))[-1] == Drain(1)
    assert life.tell(Drained(1)) == [Signal(Stage.TERM)]
    life.crashes(0)
    assert life.tell(DependenciesReady()) == [Spawn(2)]


@pytest.mark.parametrize(
    "spec",
    [worker(drain_timeout=0.0), instance("api_server", drain_timeout=300.0)],
    ids=["no time for it", "not in rotation"],
)
def test_who_has_nothing_to_drain_gets_sigterm_at_once(spec: InstanceSpec) -> None:
    life = Life(spec).ready()
    assert life.tell(StopRequested("asked"), DependentsStopped())[-1] == Signal(Stage.TERM)


def test_a_worker_that_has_left_rotation_does_not_drain() -> None:
    life = Life(worker(drain_timeout=300.0)).ready()
    life.failed(Check.READINESS, times=3)
    assert life.tell(StopRequested("asked"), DependentsStopped())[-1] == Signal(Stage.TERM)


def test_a_worker_that_still_starts_does_not_drain() -> None:
    life = Life(worker(drain_timeout=300.0))
    life.start()
    life.spawned()
    assert life.tell(RestartRequested("asked"))[-1] == Signal(Stage.TERM)


def test_a_worker_that_hangs_does_not_drain() -> None:
    life = Life(worker(drain_timeout=300.0)).ready()
    effects = life.failed(Check.LIVENESS, times=2)
    assert effects == [StopProbes(), LeaveRotation(), Signal(Stage.TERM)]


def test_a_stop_may_ask_for_no_drain() -> None:
    life = Life(worker(drain_timeout=300.0)).ready()
    effects = life.tell(StopRequested("asked", drain=False), DependentsStopped())
    assert effects[-1] == Signal(Stage.TERM)


def test_a_drain_that_is_under_way_is_ended_by_a_stop_without_one() -> None:
    life = draining()
    assert life.tell(StopRequested("going down", drain=False)) == [Signal(Stage.TERM)]
    assert life.status.reason == "going down"


def test_a_server_that_finishes_its_streams_has_only_its_grace_left_when_all_goes_down() -> None:
    life = Life(instance("api_server", drain_timeout=300.0, stop_grace=30.0)).ready()
    life.tell(StopRequested("replaced"), DependentsStopped())
    assert life.delay == 300.0
    assert life.tell(StopRequested("going down", drain=False)) == []
    assert life.delay == 30.0
    life.now += 20.0
    assert life.tell(StopRequested("going down", drain=False)) == []
    assert life.delay == 10.0, "asked again, it gets no more"
    assert life.wait_for_timer() == [Signal(Stage.INT)]


def test_a_hurry_skips_the_drain() -> None:
    life = draining()
    assert life.tell(Hurried()) == [Signal(Stage.TERM), Signal(Stage.INT)]
    assert life.delay == HURRIED_GRACE
    assert life.tell(Drained(1)) == []


def test_a_hurry_before_it_has_begun_skips_the_drain_too() -> None:
    life = Life(worker(drain_timeout=300.0)).ready()
    life.tell(StopRequested("received SIGINT"))
    effects = life.tell(Hurried())
    assert effects == [StopProbes(), LeaveRotation(), Signal(Stage.TERM), Signal(Stage.INT)]


def test_it_may_die_while_it_drains() -> None:
    life = draining()
    assert life.crashes() == [StopProbes()]
    assert (life.status.state, life.status.timer) == (State.STOPPED, None)
    assert life.tell(Drained(1)) == []


def test_asked_to_start_while_it_drains_it_ends_its_requests_and_starts_again() -> None:
    life = draining()
    assert life.tell(StartRequested("asked to start")) == []
    assert life.status.stage is Stage.DRAIN
    assert life.tell(Drained(1)) == [Signal(Stage.TERM)]
    life.crashes(0)
    assert life.tell(DependenciesReady()) == [Spawn(2)]


def test_asked_to_stop_while_it_drains_for_a_restart_it_stays_down() -> None:
    life = Life(worker(drain_timeout=300.0)).ready()
    life.tell(RestartRequested("asked to restart"), StopRequested("asked to stop"))
    assert life.status.stage is Stage.DRAIN
    life.tell(Drained(1))
    life.crashes(0)
    assert (life.status.state, life.status.wanted) == (State.STOPPED, False)


def test_a_server_that_drains_by_itself_on_sigterm_gets_the_time_for_it() -> None:
    life = Life(instance("api_server", drain_timeout=300.0, stop_grace=30.0)).ready()
    life.tell(StopRequested("asked"), DependentsStopped())
    assert life.delay == 300.0
    life = Life(instance("api_server", drain_timeout=300.0, stop_grace=30.0)).ready()
    life.failed(Check.LIVENESS, times=2)
    assert life.delay == 30.0, "but not when it hangs"


# ---------------------------------------------------------------- supervised in another way

OTHERWISE = Probe(STATUS, interval=9.0, timeout=9.0, failures=1)


def adjusted(life: Life, **fields: Any) -> list[Effect]:
    before, life.spec = life.spec, replace(life.spec, **fields)
    return life.tell(Adjusted(before))


@pytest.mark.parametrize("check", [Check.READINESS, Check.LIVENESS])
@pytest.mark.parametrize("probe", [OTHERWISE, None])
def test_a_probe_that_asks_otherwise_is_begun_anew(check: Check, probe: Probe | None) -> None:
    life = Life().ready()
    before = life.status
    assert adjusted(life, **{check.value: probe}) == [StartProbes(1, (check,))]
    assert life.status == before
    assert adjusted(life) == [], "and no other"


def test_progress_that_is_looked_for_otherwise_is_begun_anew() -> None:
    life = Life().ready()
    effects = adjusted(life, progress=Progress(stall_after=9.0))
    assert effects == [StartProbes(1, (Check.PROGRESS,))]


@pytest.mark.parametrize("fields", [{"models": ("vicuna", "gpt-4")}, {"multimodal": True}])
def test_another_name_is_told_to_the_controller(fields: dict[str, Any]) -> None:
    life = Life().ready()
    assert adjusted(life, **fields) == [EnterRotation(1)]
    before = life.status
    assert life.tell(EnteredRotation(1)) == []
    assert life.status == before


def test_a_name_is_told_only_of_what_is_in_rotation() -> None:
    life = Life()
    life.start()
    life.spawned()
    assert adjusted(life, models=("renamed",)) == []
    life.answered(Check.STARTUP)
    assert adjusted(life, models=("again",)) == [EnterRotation(1)], "it is about to be"


def test_startup_questions_that_change_while_it_starts_are_asked_from_the_first() -> None:
    life = Life()
    life.start()
    startup = life.spec.startup
    assert startup is not None
    assert adjusted(life, startup=replace(startup, interval=1.0)) == [], "none is asked yet"
    life.spawned()
    timer = life.status.timer
    effects = adjusted(life, startup=replace(startup, interval=2.0))
    assert effects == [StartProbes(1, (Check.STARTUP,))]
    assert life.status.timer == timer
    life.answered(Check.STARTUP)
    assert adjusted(life, startup=replace(startup, interval=3.0)) == [], "it has answered"


@pytest.mark.parametrize(
    "fields",
    [
        {"restart": RestartPolicy(limit=1)},
        {"stop_grace": 1.0, "drain_timeout": 9.0},
        {"depends_on": ()},
        {"argv": ("run", "--otherwise"), "env": (("NO_PROXY", "*"),)},
        {"surge": True, "max_unavailable": 3},
    ],
)
def test_nothing_else_does_anything_at_once(fields: dict[str, Any]) -> None:
    life = Life().ready()
    before = life.status
    assert adjusted(life, **fields) == []
    assert life.status == before


def test_a_time_to_drain_counts_for_what_runs_already() -> None:
    life = Life(worker(drain_timeout=0.0)).ready()
    adjusted(life, drain_timeout=42.0)
    assert life.tell(RestartRequested("asked"))[-1] == Drain(1)
    assert life.delay == 42.0


def test_without_a_readiness_probe_any_more_it_returns_by_the_startup_questions() -> None:
    """Nothing else would ever bring it back."""
    life = Life().ready()
    life.failed(Check.READINESS, times=3)
    effects = adjusted(life, readiness=None)
    assert effects == [StartProbes(1, (Check.READINESS,)), StartProbes(1, (Check.STARTUP,))]
    life.answered(Check.STARTUP)
    life.tell(EnteredRotation(1))
    assert life.status.state is State.READY


def test_startup_questions_that_change_on_its_way_back_are_asked_anew() -> None:
    life = Life().ready()
    life.failed(Check.READINESS, times=3)
    life.answered(Check.READINESS)
    startup = life.spec.startup
    assert startup is not None
    changed = replace(startup, questions=(STATUS,))
    assert adjusted(life, startup=changed) == [StartProbes(1, (Check.STARTUP,))]
    assert adjusted(life, stop_grace=1.0) == []


@pytest.mark.parametrize("check", [Check.READINESS, Check.LIVENESS])
def test_an_answer_to_what_is_not_asked_any_more_counts_for_nothing(check: Check) -> None:
    """It was on its way when the probe was taken out of the file."""
    life = Life().ready()
    adjusted(life, **{check.value: None})
    assert life.failed(check, times=9) == []
    assert life.status.state is State.READY


def test_a_verdict_on_what_ran_before_somebody_started_it_does_not_count() -> None:
    life = Life()
    life.start()
    life.spawned()
    life.crashes(2)
    life.tell(RestartRequested("with other arguments"))
    life.crashes(2)
    life.tell(DependenciesReady())
    life.tell(Diagnosed(2, ARGUMENT_ERROR, CauseClass.WRONG_CONFIG))
    assert (life.status.state, life.status.hopeless) == (State.STARTING, 0)
    assert ARGUMENT_ERROR not in life.status.reason


# ---------------------------------------------------------------- restart and start on request


def test_restart_on_request_stops_it_and_starts_it_when_its_dependencies_are_ready() -> None:
    life = Life().ready()
    effects = life.tell(RestartRequested("asked to restart"))
    assert effects == [StopProbes(), LeaveRotation(), Signal(Stage.TERM)]
    life.wait_for_timer()
    life.crashes(0)
    assert (life.status.state, life.status.wanted) == (State.STOPPED, True)
    assert life.status.reason == "asked to restart; waiting to start"
    assert life.tell(DependenciesReady()) == [Spawn(2)]
    assert life.status.restarts == 0, "a person did that, not the supervisor"


def test_start_while_stopping_starts_it_afterwards_and_not_before_its_dependencies() -> None:
    life = Life().ready()
    life.tell(StopRequested("asked to stop"), DependentsStopped())
    assert life.tell(StartRequested("asked to start")) == []
    assert life.status.state is State.STOPPING
    assert life.crashes(0) == [StopProbes()]
    assert life.status.reason == "asked to start; waiting to start"
    assert life.tell(DependenciesReady()) == [Spawn(2)]


def test_the_last_word_counts_when_minds_change_while_it_stops() -> None:
    life = Life().ready()
    life.tell(RestartRequested("asked to restart"), StopRequested("asked to stop"))
    assert life.status.reason == "asked to stop"
    life.crashes(0)
    assert (life.status.state, life.status.reason) == (State.STOPPED, "asked to stop")
    assert life.tell(DependenciesReady()) == []


def test_a_person_who_asks_for_a_restart_is_not_told_to_wait_by_the_policy() -> None:
    """Being stopped for a fault, its policy would leave it down; somebody says start: it starts."""
    life = Life(worker(restart=RestartPolicy(policy="never"))).ready()
    life.failed(Check.LIVENESS, times=2)
    life.tell(RestartRequested("asked to restart"))
    life.crashes(1)
    assert life.tell(DependenciesReady()) == [Spawn(2)]


def test_start_of_what_runs_changes_nothing() -> None:
    life = Life().ready()
    before = life.status
    assert life.tell(StartRequested("asked to start")) == []
    assert life.status == before


# ---------------------------------------------------------------- what comes late


def _of_run(run: int) -> list[Event]:
    return [
        Spawned(run, 1),
        SpawnFailed(run, "no", CauseClass.WRONG_CONFIG),
        Exited(run, 0, None),
        EnteredRotation(run),
        *(Probed(run, check, outcome, "old") for check in Check for outcome in Outcome),
    ]


def test_reports_of_an_older_process_change_nothing() -> None:
    life = Life().ready()
    life.crashes()
    life.becomes_ready()
    before = life.status
    for event in _of_run(1):
        assert life.tell(event) == []
        assert life.status is before
    life.crashes()
    life.wait_for_timer()
    before = life.status
    life.tell(Diagnosed(1, "old", CauseClass.WRONG_CONFIG))
    assert life.status is before


def test_a_timer_of_an_older_epoch_changes_nothing() -> None:
    life = Life()
    life.start()
    deadline = life.status.timer
    assert deadline is not None
    life.becomes_ready()
    life.tell(RestartRequested("asked to restart"))
    before = life.status
    assert life.tell(TimerFired(deadline.epoch)) == []
    assert life.status is before


def test_answers_that_arrive_after_the_end_do_not_wake_the_dead() -> None:
    life = Life().ready()
    life.tell(StopRequested("asked to stop"), DependentsStopped())
    life.crashes(0)
    for event in (*_of_run(1), TimerFired(1), Diagnosed(1, "late", CauseClass.UNKNOWN)):
        assert [e for e in life.tell(event) if not isinstance(e, StopProbes)] == []
        assert life.status.state is State.STOPPED
        assert (life.status.pid, life.status.timer) == (None, None)


# ---------------------------------------------------------------- rotation


def _paths_out_of_ready() -> list[Any]:
    return [
        pytest.param(lambda life: life.crashes(), id="crash"),
        pytest.param(lambda life: life.failed(Check.READINESS, times=3), id="unready"),
        pytest.param(lambda life: life.failed(Check.LIVENESS, times=2), id="hung"),
        pytest.param(lambda life: life.tell(RestartRequested("asked")), id="restart"),
        pytest.param(
            lambda life: life.tell(StopRequested("asked"), DependentsStopped()), id="stop"
        ),
    ]


@pytest.mark.parametrize("path", _paths_out_of_ready())
def test_every_way_out_of_ready_leaves_rotation_in_the_same_moment(path: Any) -> None:
    life = Life().ready()
    assert life.status.in_rotation
    assert path(life).count(LeaveRotation()) == 1
    assert life.status.state is not State.READY
    assert not life.status.in_rotation


def test_what_is_not_in_rotation_does_not_leave_it() -> None:
    life = Life(instance("api_server")).ready()
    assert LeaveRotation() not in life.crashes()
