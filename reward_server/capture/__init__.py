"""Films a clip again: noise, flicker, resizing and a real encoding, so that two clips differ only in their motion.

A frozen clip made from copies of a frame repeats that frame bit for bit, and a real clip never does. A discriminator
would learn this and nothing about motion. So pretraining and `sanity` send every clip through a capture chain of its
own (`chain.py`), drawn from one distribution for real clips, faulty twins and generated clips. `sensor.py` holds what a
camera adds, `display.py` what players and resizing add, `codec.py` the encoding.
"""
