"""Do the heads of trained transformers carry out the flow of multinomial regression?"""
