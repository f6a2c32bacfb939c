"""``pytest --fastfork``: each test in a process of its own, forked from one in which its wide fixtures are set up.

=============  ========================================================================================================
needs          which wide fixtures a test needs, and at which node of the collection tree each of them lives
plan           the tests of a run as a tree: which of them get a template of their own, and in what order
durations      what earlier runs took, and the order that follows from it
slot, wire     what the processes share, and what they say to each other
template       a process in which wide fixtures live, and from which tests are forked
test_process   a process that runs one test
supervisor     pytest's own process: has templates do what the plan says
records        what is known of each test; results reach pytest's hooks in the order of plain pytest
session        the hooks by which pytest runs all this
internals      the only module that knows pytest's private names
=============  ========================================================================================================
"""
