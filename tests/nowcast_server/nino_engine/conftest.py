"""Puts the support modules of these tests on the path: wirings by hand and drawn at random, and the networks of the fixtures."""

import sys
from pathlib import Path

HERE, TESTS = Path(__file__).parent, Path(__file__).parents[2]
sys.path[:0] = [str(HERE), str(TESTS / "nowcast_server" / "nino"), str(TESTS / "trainer_worker" / "wiring")]
