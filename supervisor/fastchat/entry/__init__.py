"""Stand-alone start modules for FastChat, one for each of its modules that a cluster runs.

`PYTHON .../entry/NAME.py FLAGS` does what `PYTHON -m fastchat.serve.NAME FLAGS` does, with FastChat
mended from outside. The flags are FastChat's own, read by FastChat's own parser.

The modules run by path, perhaps under an interpreter that has no llm-supervisor (`python:` in the
cluster file). So they import the standard library, FastChat, and what FastChat imports itself, and
stay within the syntax of Python 3.8. They are no part of the supervisor's process: nothing in
`supervisor` imports them.

A mend is a small function. It says what is wrong and names the upstream issue, has a test that
fails without it, and steps aside where FastChat no longer needs it.

Environment:
  LLM_SUPERVISOR_NO_REGISTER=1   workers never speak to the controller (the supervisor registers)
  LLM_SUPERVISOR_PROGRESS=PATH   workers note there what they do (`progress`)
  LLM_SUPERVISOR_READ_AHEAD=...  large weights that workers are about to load (`read_ahead`)
  LLM_SUPERVISOR_SECRETS=stdin   openai_api_server reads {"api_keys": [...]} from stdin up to EOF
"""
