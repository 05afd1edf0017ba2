"""The console: a bar in a terminal, a line now and then elsewhere."""

import io

from openrlhf.tracking.sinks import BarSink, LineSink, console_sink


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_with_loss_rate_speed_and_time_left(a_step):
    terminal = Terminal()
    sink = console_sink(num_steps=10, stream=terminal)
    sink.log_step(a_step(1))
    sink.log_step(a_step(2, loss=0.98765))
    sink.close()
    last_bar = terminal.getvalue().split("\r")[-1]
    assert isinstance(sink, BarSink)
    for part in ("2/10", "loss 0.9877", "lr 1.00e-04", "1,234 tokens/s", "<"):
        assert part in last_bar, f"{part!r} is missing in {last_bar!r}"


def test_a_resumed_bar_begins_where_the_run_stands(a_step):
    terminal = Terminal()
    sink = console_sink(num_steps=10, first_step=6, stream=terminal)
    sink.log_step(a_step(7))
    sink.close()
    assert "7/10" in terminal.getvalue().split("\r")[-1]


def test_a_log_file_gets_the_first_the_last_and_few_lines_between(a_step):
    log = io.StringIO()
    sink = console_sink(num_steps=50, stream=log)
    for step in range(1, 51):
        sink.log_step(a_step(step))
    lines = log.getvalue().splitlines()
    assert isinstance(sink, LineSink)
    assert [line.split()[1] for line in lines] == ["1/50", "50/50"]
    assert "\r" not in log.getvalue()
    assert lines[-1].endswith("00:00 left")


def test_a_log_file_gets_a_line_once_the_wait_is_over(a_step):
    log = io.StringIO()
    sink = LineSink(num_steps=3, first_step=0, stream=log, seconds_between_lines=0.0)
    for step in (1, 2, 3):
        sink.log_step(a_step(step))
    assert len(log.getvalue().splitlines()) == 3


def test_an_evaluation_is_a_line_of_its_own(an_eval):
    for stream in (io.StringIO(), Terminal()):
        sink = console_sink(num_steps=10, stream=stream)
        sink.log_eval(an_eval(5))
        sink.close()
        assert "evaluation after step 5: loss 1.2500, perplexity 3.490 over 77 target tokens\n" in stream.getvalue()


def test_an_moe_model_shows_its_auxiliary_loss(a_step):
    log = io.StringIO()
    console_sink(num_steps=1, stream=log).log_step(a_step(1, aux_loss=0.5))
    assert "aux_loss 0.5000" in log.getvalue()


def test_token_accuracy_is_shown_where_a_record_has_it(a_step, an_eval):
    log = io.StringIO()
    sink = console_sink(num_steps=1, stream=log)
    sink.log_step(a_step(1, token_accuracy=0.25))
    sink.log_eval({**an_eval(1), "eval_token_accuracy": 0.75})
    step, evaluation = log.getvalue().splitlines()
    assert "tokens/s, token_accuracy 0.2500" in step
    assert "token_accuracy 0.7500 over 77 target tokens" in evaluation
