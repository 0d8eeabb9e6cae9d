"""Reading the kind of an edit off two prompts."""
import pytest
from palimpsest.editing.edit_kind import KINDS, Edit, read_edit
from palimpsest.miniature.scenes import EDIT_KINDS, held_out_edit

PAIRS = """
object | a cat sitting next to a mirror | a tiger sitting next to a mirror
object | a round cake with orange frosting on a wooden plate | a square cake with orange frosting on a wooden plate
object | a cat on a chair | a cat on a sofa
object | a man wearing glasses | a man wearing sunglasses
object | a photo of a house on a mountain | a photo of a castle on a mountain
object | a bowl of strawberries | a bowl of lemons
object | a red rose in a vase | a sunflower in a vase
object | a cat statue in a garden | a dog statue in a garden
object | a bicycle leaning against a wall | a motorcycle leaning against a wall
object | two birds on a branch | two squirrels on a branch
object | a slice of lemon pie on a plate | a slice of chocolate cake on a plate
object | a dog in a basket | a dog in a box
object | cat | dog
object | 1girl, red hair, solo, smiling | 1boy, red hair, solo, smiling
object | a goat and a cat standing on a rock near the ocean | a horse and a cat standing on a rock near the ocean
add | a woman | a woman with a hat
add | a cat on a sofa | a cat with a red collar on a sofa
add | a table | a table with a bowl of fruit
add | a man in the park | a man wearing a black suit in the park
add | a dog on the grass | a dog and a ball on the grass
add | a wooden table | a vase of flowers on a wooden table
add | a girl standing in the rain | a girl holding an umbrella standing in the rain
add | a photo of a beach | a photo of a beach with palm trees
add | portrait of a man | portrait of a man, beard, glasses
add | a cup of coffee on a desk | a cup of coffee and a laptop on a desk
add | a cat | a cat in a hat
delete | a woman with a hat | a woman
delete | a dog and a ball on the grass | a dog on the grass
delete | a man wearing a black suit in the park | a man in the park
delete | a cup of coffee next to a laptop on a desk | a cup of coffee on a desk
delete | a street with cars and people | a street with people
delete | a lighthouse by the sea with a boat | a lighthouse by the sea
delete | two dogs and a cat on a sofa | two dogs on a sofa
delete | portrait of a woman, necklace, long hair | portrait of a woman, long hair
colour | a red car | a blue car
colour | a woman with blonde hair | a woman with black hair
colour | a car parked on a street | a red car parked on a street
colour | a yellow bird with a red beak | a yellow bird with a green beak
colour | a photo of a white cat and a black dog | a photo of a ginger cat and a black dog
colour | a red apple | an apple
colour | a bedroom with blue walls | a bedroom with dark green walls
material | a wooden chair | a metal chair
material | a statue of a lion | a golden marble statue of a lion
material | a striped shirt on a hanger | a checkered shirt on a hanger
material | a dog in the park | a fluffy dog in the park
material | a bear made of wood | a bear made of glass
material | a leather sofa in a room | a velvet sofa in a room
material | a rusty car | a shiny car
material | a cake with fruit | a cake with frozen fruit
pose | a cat sitting on a sofa | a cat sleeping on a sofa
pose | a dog standing on the grass | a dog jumping on the grass
pose | a man | a man smiling
pose | a woman with closed eyes | a woman with open eyes
pose | a horse running in a field | a horse standing in a field
pose | a bird | a bird flying
pose | a happy man in a suit | a sad man in a suit
pose | a cat on a table | a cat under a table
pose | a photo of a person with arms crossed | a photo of a person with arms raised
pose | a young woman | an old woman
background | a dog in a garden | a dog on a beach
background | a cat sitting in a garden | a cat sitting in a snowy forest
background | a woman standing on a street | a woman standing in a field of flowers
background | a car on a road | a car on a road at night
background | a photo of a dog | a photo of a dog on the moon
background | a bottle on a white background | a bottle on a blue background
background | a castle in summer | a castle in winter
background | a house at day | a house at sunset
background | a bear in the forest | a bear in the desert
background | a man, city street, neon lights | a man, city street at night, neon lights
style | a photo of a car on a road | a watercolor painting of a car on a road
style | a photo of a mountain | a mountain in the style of Van Gogh
style | a cat sitting on a fence | an oil painting of a cat sitting on a fence
style | a cat | a cat, anime style
style | a painting of a woman | a photograph of a woman
style | a pencil sketch of a house | a house
style | a woman in a red dress | a woman in a red dress, pixel art
style | a landscape with a river | a landscape with a river by Monet
style | a realistic portrait of a king | a cartoon portrait of a king
object | a slanted rusty mountain bicycle on the road | a slanted rusty mountain motorcycle on the road
add | an aerial view of a beach | an aerial view of a beach with a boat
add | a sofa in a living room | a cat lying on a sofa in a living room
add | masterpiece, best quality, 1girl | masterpiece, best quality, 1girl, hat
delete | a man with a beard and glasses | a man with a beard
delete | the boat on the lake at sunset | the lake at sunset
colour | masterpiece, best quality, 1girl, blue eyes | masterpiece, best quality, 1girl, green eyes
material | a photo of a bronze horse in a museum | a photo of a glass horse in a museum
pose | a cup to the left of a book | a cup to the right of a book
pose | a cat | a cat with its mouth open
background | a house under a blue sky | a house under a stormy sky
background | masterpiece, 1girl, standing, beach | masterpiece, 1girl, standing, forest
style | a photo of a dog, 35mm | an oil painting of a dog, 35mm
style | masterpiece, best quality, 1girl, blue eyes | masterpiece, best quality, 1girl, blue eyes, watercolor
style | portrait photo of a man | watercolor portrait of a man
style | a black and white photo of a car | a color photo of a car
object | a woman in a red dress | a woman in an evening gown
object | a child in rain boots | a child in sandals
object | a man in rain boots | a man in snow boots
object | a snow leopard on a rock | a tiger on a rock
object | a Christmas tree in a room | a palm tree in a room
object | a fall leaf | a feather
add | a man | a man in a winter jacket
delete | a boy with a rain coat | a boy
background | a forest path | a snowy forest path
background | a house with a red door | a snowy house with a red door
background | a city street on a sunny day | a city street on a rainy day
background | a photo of a tree, stormy weather | a photo of a tree, sunny weather
background | a bird in the morning light | a bird in the evening light
background | a street | a street covered in snow
add | a blue sky | a blue sky with birds flying
add | a bench | a bench with an old man sitting
add | a man on a bench | a man on a bench with a dog sleeping
add | a field | a field and a horse running
delete | a street with people walking | a street
delete | a rock with a lizard lying on it | a rock
delete | a man walking with his dog running | a man walking
pose | a man | a man with arms raised
pose | a man standing | a man standing and smiling
delete | a cat with a ball | a cat without a ball
delete | a cat with a red ball | a cat without a ball
delete | a man wearing a hat in a park | a man without a hat in a park
delete | a street with a car | a street with no car
delete | humans, forest | no humans, forest
add | a cat without a ball | a cat with a ball
pose | a girl with her hair down | a girl with her hair up
colour | no humans, red flower, forest | no humans, blue flower, forest
colour | white van, street | black van, street
object | las vegas street, red car | las vegas street, red truck
object | van gogh portrait, cat | van gogh portrait, dog
material | a cat | a cat made of glass
material | a bear made of wood | a bear
material | a man in a hat | a man in a hat made of snow
material | a cat sleeping on a mat | a cat made of glass sleeping on a mat
style | a woman in a garden | a woman in a garden, oil painting
style | a man, digital art | a man
add | a man | a man made up as a clown
background | a dog in the snow chasing a cat | a dog in the rain chasing a cat
add | a garden | a garden, statue
"""
CASES = [tuple(part.strip() for part in line.split("|")) for line in PAIRS.strip().splitlines()]


@pytest.mark.parametrize("kind, source, target", CASES)
def test_everyday_prompts(kind, source, target):
    assert read_edit(source, target).kind == kind


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_every_kind_of_the_miniature(kind):
    edits = [held_out_edit(n, kind) for n in range(40)]
    assert {read_edit(e.source_text, e.target_text).kind for e in edits} == {kind}


SEVERAL = """
object | a cat on a beach | a red dog on a beach
add | a red car on a road | a blue car with a driver on a road
delete | a photo of a dog and a cat | a watercolor painting of a dog
background | a red car in a garden | a blue car on a beach
pose | a wooden chair standing in a room | a metal chair lying in a room
style | a photo of a red rose | a watercolor painting of a blue rose
"""


@pytest.mark.parametrize("kind, source, target", [line.split(" | ") for line in SEVERAL.strip().splitlines()])
def test_of_several_changes_the_loosest_names_the_edit(kind, source, target):
    edit = read_edit(source, target)
    assert edit.kind == kind == min((change.kind for change in edit.changes), key=KINDS.index)


@pytest.mark.parametrize("source, target", [
    ("eine Katze auf einem Stuhl", "ein Hund auf einem Stuhl"), ("un gato en la playa", "un perro en la playa"),
    ("un chat sur une chaise", "un chien sur une chaise"), ("一只猫坐在椅子上", "一只狗坐在椅子上"),
    ("кошка на стуле", "собака на стуле"), ("los gatos en la playa", "los perros en la playa"),
    ("ein Hund mit Hut", "ein Hund ohne Hut")])
def test_another_language_has_no_kind(source, target):
    assert read_edit(source, target) == Edit("", english=False)


@pytest.mark.parametrize("source, target", [
    ("a cat", "a cat"), ("a cat", "the cat"), ("a cat with no hat", "a cat without a hat"), ("", "")])
def test_what_does_not_change_has_no_kind(source, target):
    assert read_edit(source, target) == Edit("")


@pytest.mark.parametrize("source, target, named, wanted", [
    ("a red star and a red heart", "a red star and a blue heart", ("red#2", "heart"), ("blue", "heart")),
    ("a cat sitting on a sofa", "a cat sleeping on a sofa", ("cat",), ("cat",)),
    ("a man", "a man smiling", ("man",), ("man",)),
    ("a man is standing", "a man is sitting", ("man",), ("man",)),
    ("a cat", "a tilted cat", ("cat",), ("cat",)),
    ("a cat", "a cat made of glass", ("cat",), ("cat", "made", "glass")),
    ("a girl with her hair down in a garden", "a girl with her hair up in a garden", ("hair",), ("hair",)),
    ("a cat on a red mat with a red ball", "a cat on a red mat without a red ball", ("red#2", "ball"), ()),
    ("a cat with no red ball", "a cat with a red ball", (), ("red", "ball")),
    ("a man with a hat standing", "a man without a hat standing", ("hat",), ()),
    ("a rock with a lizard lying on it", "a rock", ("lizard", "lying"), ()),
    ("a cat on a sofa", "a cat with a red collar on a sofa", (), ("red", "collar")),
    ("a dog and a red ball on the grass", "a dog on the grass", ("red", "ball"), ()),
    ("a red heart and a red star on a hill", "a red star on a hill", ("red#1", "heart"), ()),
    ("a photo of a red sports car, 4k", "a photo of a blue sports car, 4k", ("red", "sports", "car"),
     ("blue", "sports", "car"))])
def test_the_things_that_a_change_concerns(source, target, named, wanted):
    change, = read_edit(source, target).changes
    assert (change.source, change.target) == (named, wanted)
