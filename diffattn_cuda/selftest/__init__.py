"""The self-test behind `python -m diffattn_cuda`: every kernel that runs here, against fp64.

`problems` draws inputs and knows the exact results, `checks` compares each kernel with them,
`machine` says what was built and what it can run on, `workers` runs the checks of one device in a
process of their own, so that a kernel that crashes or hangs costs one line, not the report.
"""
