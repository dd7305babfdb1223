import unittest

from app import greet


class Greet(unittest.TestCase):
    def test_name(self):
        self.assertEqual(greet("you"), {"greeting": "hello you"})


if __name__ == "__main__":
    unittest.main()
