"""How close a policy is to its teacher, and how policies differ, without the discriminator."""
